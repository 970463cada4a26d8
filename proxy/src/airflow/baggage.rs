//! Task context on its way between proxies: members `airflow.*` of the `baggage` header (W3C Baggage).
//!
//! A proxy writes them for what it has found out itself, and believes them of peers that policy says it may believe;
//! whatever a client says of itself is removed. Other members pass as they are.

use http::{HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, percent_decode_str, utf8_percent_encode};

use crate::telemetry::TaskContext;

const BAGGAGE: HeaderName = HeaderName::from_static("baggage");

/// Members of this name are the mesh's.
const PREFIX: &str = "airflow.";

/// Longest header that is carried on (W3C Baggage, section 3.3.2 asks for at least this much).
const MAX_BYTES: usize = 8192;

/// Longest value of one member: Airflow's own ids have 250 characters at most.
const MAX_VALUE_BYTES: usize = 1024;

/// What must be percent-encoded in a value (W3C Baggage, section 3.3.1.1): all but baggage-octets.
const ENCODED: &AsciiSet = &CONTROLS
    .add(b' ')
    .add(b'"')
    .add(b',')
    .add(b';')
    .add(b'\\')
    .add(b'%');

/// Removes the members that are the mesh's and gives back the task that they name. Anything odd in them names none.
pub(crate) fn take(headers: &mut HeaderMap) -> Option<TaskContext> {
    if !headers.contains_key(BAGGAGE) {
        return None;
    }
    let mut kept = String::new();
    let mut ours = false;
    let mut read = Members::default();
    for value in headers.get_all(BAGGAGE) {
        let Ok(value) = value.to_str() else {
            // Not of the standard, and nobody knows what it would say behind us.
            ours = true;
            continue;
        };
        for member in value
            .split(',')
            .map(str::trim)
            .filter(|member| !member.is_empty())
        {
            let (name, rest) = member.split_once('=').unwrap_or((member, ""));
            if is_ours(name.trim()) {
                ours = true;
                let value = rest.split(';').next().unwrap_or_default().trim();
                read.member(name.trim(), value);
            } else if kept.len() + member.len() < MAX_BYTES {
                if !kept.is_empty() {
                    kept.push(',');
                }
                kept.push_str(member);
            } else {
                ours = true;
            }
        }
    }
    if ours {
        headers.remove(BAGGAGE);
        if let Ok(value) = HeaderValue::try_from(kept)
            && !value.is_empty()
        {
            headers.insert(BAGGAGE, value);
        }
    }
    read.task()
}

/// Adds members that name `task`, after [`take`] has removed what was there. One whose run is not known is named by its
/// certificate alone.
pub(crate) fn put(headers: &mut HeaderMap, task: &TaskContext) {
    if task.run_id.is_empty() {
        return;
    }
    let mut text = match headers.get(BAGGAGE).map(HeaderValue::to_str) {
        Some(Ok(others)) if others.len() < MAX_BYTES => others.to_owned(),
        _ => String::new(),
    };
    let mut member = |name: &str, value: &str| {
        if !text.is_empty() {
            text.push(',');
        }
        text.push_str(PREFIX);
        text.push_str(name);
        text.push('=');
        text.extend(utf8_percent_encode(value, ENCODED));
    };
    member("dag_id", &task.dag_id);
    member("task_id", &task.task_id);
    member("run_id", &task.run_id);
    if let Some(index) = task.map_index {
        member("map_index", &index.to_string());
    }
    if let Some(number) = task.try_number {
        member("try_number", &number.to_string());
    }
    if let Some(user) = &task.triggered_by {
        member("triggered_by", user);
    }
    // Percent-encoded text is always a valid value.
    if let Ok(value) = HeaderValue::try_from(text) {
        headers.insert(BAGGAGE, value);
    }
}

/// Some readers take `_` and `.` or upper case for the same.
fn is_ours(name: &str) -> bool {
    name.len() >= PREFIX.len()
        && name.is_char_boundary(PREFIX.len())
        && name.split_at(PREFIX.len()).0.eq_ignore_ascii_case(PREFIX)
}

#[derive(Debug, Default)]
struct Members {
    dag_id: Option<String>,
    task_id: Option<String>,
    run_id: Option<String>,
    map_index: Option<String>,
    try_number: Option<String>,
    triggered_by: Option<String>,
    odd: bool,
}

impl Members {
    fn member(&mut self, name: &str, value: &str) {
        let slot = match name.strip_prefix(PREFIX) {
            Some("dag_id") => &mut self.dag_id,
            Some("task_id") => &mut self.task_id,
            Some("run_id") => &mut self.run_id,
            Some("map_index") => &mut self.map_index,
            Some("try_number") => &mut self.try_number,
            Some("triggered_by") => &mut self.triggered_by,
            // From a newer proxy.
            _ => return,
        };
        let value = percent_decode_str(value).decode_utf8();
        match value {
            Ok(value)
                if slot.is_none()
                    && !value.is_empty()
                    && value.len() <= MAX_VALUE_BYTES
                    && !value.contains(char::is_control) =>
            {
                *slot = Some(value.into_owned());
            }
            _ => self.odd = true,
        }
    }

    fn task(self) -> Option<TaskContext> {
        if self.odd {
            return None;
        }
        // A number that is none makes all of it unbelievable.
        let map_index = self.map_index.map(|index| index.parse()).transpose().ok()?;
        let try_number = self
            .try_number
            .map(|number| number.parse())
            .transpose()
            .ok()?;
        Some(TaskContext {
            dag_id: self.dag_id?,
            task_id: self.task_id?,
            run_id: self.run_id?,
            map_index,
            try_number,
            triggered_by: self.triggered_by,
            ..TaskContext::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(values: &[&str]) -> HeaderMap {
        let values = values.iter().map(|value| (BAGGAGE, value.parse().unwrap()));
        values.collect()
    }

    fn baggage(headers: &HeaderMap) -> Vec<&str> {
        let values = headers.get_all(BAGGAGE).iter();
        values.map(|value| value.to_str().unwrap()).collect()
    }

    const WHOLE: &str = "airflow.dag_id=a,airflow.task_id=b,airflow.run_id=c";

    #[test]
    fn the_members_of_others_pass_and_ours_are_taken_out() {
        let mut found = headers(&[
            "k=v;p=1, airflow.dag_id=a",
            "airflow.task_id=b,x=y,airflow.run_id=c",
        ]);
        let task = take(&mut found).unwrap();
        assert_eq!(
            (&*task.dag_id, &*task.task_id, &*task.run_id),
            ("a", "b", "c")
        );
        assert_eq!(baggage(&found), ["k=v;p=1,x=y"]);

        let mut untouched = headers(&["k=v", "x=y"]);
        assert_eq!(take(&mut untouched), None);
        assert_eq!(baggage(&untouched), ["k=v", "x=y"]);

        let mut only_ours = headers(&[WHOLE]);
        assert!(take(&mut only_ours).is_some());
        assert!(baggage(&only_ours).is_empty());
    }

    #[test]
    fn what_is_odd_names_no_task_and_is_removed_all_the_same() {
        for odd in [
            "airflow.dag_id=a,airflow.task_id=b",
            &format!("{WHOLE},airflow.dag_id=z"),
            &format!("{WHOLE},airflow.try_number=first"),
            &format!("{WHOLE},airflow.triggered_by=%FF"),
            &format!("{WHOLE},airflow.triggered_by=a%0Ab"),
            "airflow.dag_id=,airflow.task_id=b,airflow.run_id=c",
            "Airflow.dag_id=a,AIRFLOW.task_id=b,airflow.run_id=c",
        ] {
            let mut found = headers(&[odd, "k=v"]);
            assert_eq!(take(&mut found), None, "{odd}");
            assert_eq!(baggage(&found), ["k=v"], "{odd}");
        }
    }

    proptest! {
        #[test]
        fn what_is_put_is_what_is_taken(
            dag_id in "\\PC{1,40}", user in proptest::option::of("\\PC{1,40}"), index in proptest::option::of(0..1000_i32),
        ) {
            let task = TaskContext {
                dag_id,
                task_id: "b".into(),
                run_id: "scheduled__2026-11-21T00:00:00+00:00".into(),
                map_index: index,
                try_number: Some(1),
                triggered_by: user,
                ..TaskContext::default()
            };
            let mut found = headers(&["k=v"]);
            put(&mut found, &task);
            prop_assert_eq!(take(&mut found), Some(task));
            prop_assert_eq!(baggage(&found), ["k=v"]);
        }

        #[test]
        fn no_header_is_too_odd_to_be_read(value in proptest::collection::vec(0x20..0xff_u8, 0..100)) {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                let mut found = HeaderMap::new();
                found.insert(BAGGAGE, value);
                let _ = take(&mut found);
                prop_assert!(baggage(&found).iter().all(|text| !text.contains("airflow.")));
            }
        }
    }
}
