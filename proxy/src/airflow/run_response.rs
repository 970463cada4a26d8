//! What is said of a task when it begins: its supervisor's request to `/run`, and the API server's answer.
//!
//! Airflow sends the run's names first, and what may be large after them: the run's `conf`, the events that it consumed,
//! what a deferred task goes on with. So the answer is read while it is unpacked, no more of it than is needed, and
//! nothing is kept but the values that are looked for. Where its beginning ends before the last of them, they are left out.

use std::{
    fmt,
    io::{self, BufReader, Read},
};

use flate2::read::GzDecoder;
use serde::{
    Deserialize, Deserializer,
    de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};

/// How much of an answer's beginning is looked at, as it comes over the wire.
pub(super) const MAX_BODY_BYTES: usize = 64 * 1024;

/// And after it was unpacked.
const MAX_UNPACKED_BYTES: u64 = 1024 * 1024;

/// Longest value that is kept.
const MAX_VALUE_BYTES: usize = 512;

/// What the answer to `/run` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Run {
    pub(super) dag_id: String,
    pub(super) run_id: String,
    pub(super) run_type: Option<String>,
    pub(super) team: Option<String>,
    /// The person behind the run; inherited by runs that a task triggers.
    pub(super) triggered_by: Option<String>,
    /// There may have been more, behind what was read.
    pub(super) is_cut: bool,
}

/// A body that is not what it claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unreadable {
    /// It claims a coding that is not read.
    #[error("its content coding is not gzip")]
    Coding,
    /// It claims gzip and is none.
    #[error("it is not gzip")]
    NotGzip,
    /// Its beginning does not name the run.
    #[error("it is too large")]
    TooLarge,
    /// It is not the JSON that Airflow sends.
    #[error("it is not JSON of the expected form")]
    Form,
}

impl Run {
    /// Reads the body of an answer to `/run`, or its beginning where it `is_cut`.
    ///
    /// # Errors
    /// For one that is not what Airflow sends, or does not name DAG and run.
    pub(super) fn read(
        body: &[u8],
        is_cut: bool,
        content_encoding: Option<&[u8]>,
    ) -> Result<Self, Unreadable> {
        let mut seen = Seen::default();
        let (end, is_cut) = match content_encoding {
            None | Some(b"identity") => (seen.read(body), is_cut),
            Some(b"gzip") => {
                let mut unpacked = GzDecoder::new(body).take(MAX_UNPACKED_BYTES);
                let end = seen.read(BufReader::new(&mut unpacked));
                (end, is_cut || unpacked.limit() == 0)
            }
            Some(_) => return Err(Unreadable::Coding),
        };
        match end {
            // What comes after the run is not looked at.
            _ if seen.is_whole => {}
            Err(error) if is_cut && is_early_end(&error) => {}
            Err(error) if error.is_io() => return Err(Unreadable::NotGzip),
            _ => return Err(Unreadable::Form),
        }
        let (Some(dag_id), Some(run_id)) = (seen.dag_id, seen.run_id) else {
            return Err(match seen.is_whole {
                true => Unreadable::Form,
                false => Unreadable::TooLarge,
            });
        };
        let run = Self {
            dag_id,
            run_id,
            run_type: seen.run_type,
            team: seen.team_name,
            triggered_by: seen.triggering_user_name,
            is_cut: !seen.is_whole,
        };
        let has_odd = run.texts().any(is_odd);
        match has_odd {
            true => Err(Unreadable::Form),
            false => Ok(run),
        }
    }

    fn texts(&self) -> impl Iterator<Item = &str> {
        let optional = [&self.run_type, &self.team, &self.triggered_by];
        let names = [&self.dag_id, &self.run_id].into_iter();
        let texts = names.chain(optional.into_iter().flatten());
        texts.map(String::as_str)
    }

    /// Whether both are of one run, as far as they say.
    pub(super) fn agrees_with(&self, other: &Self) -> bool {
        let is_one = self.dag_id == other.dag_id && self.run_id == other.run_id;
        self == other || (is_one && (self.is_cut || other.is_cut))
    }
}

/// Whether no name can be so.
fn is_odd(text: &str) -> bool {
    text.len() > MAX_VALUE_BYTES || text.contains(char::is_control)
}

/// Whether there was no more, inside of something.
fn is_early_end(error: &serde_json::Error) -> bool {
    error.is_eof() || error.io_error_kind() == Some(io::ErrorKind::UnexpectedEof)
}

/// What was reached of an answer.
#[derive(Debug, Default)]
struct Seen {
    dag_id: Option<String>,
    run_id: Option<String>,
    run_type: Option<String>,
    team_name: Option<String>,
    triggering_user_name: Option<String>,
    /// The run was read to its end.
    is_whole: bool,
}

impl Seen {
    /// Reads until all of the run was there. An error may come after it.
    fn read(&mut self, body: impl Read) -> serde_json::Result<()> {
        Answer(self).deserialize(&mut serde_json::Deserializer::from_reader(body))
    }
}

/// Looks for the run in the answer.
struct Answer<'s>(&'s mut Seen);

/// Looks for what is known of the run in it.
struct DagRun<'s>(&'s mut Seen);

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum AnswerField {
    DagRun,
    #[serde(other)]
    Other,
}

#[derive(Deserialize)]
#[serde(field_identifier, rename_all = "snake_case")]
enum RunField {
    DagId,
    RunId,
    RunType,
    TeamName,
    TriggeringUserName,
    #[serde(other)]
    Other,
}

impl<'de> DeserializeSeed<'de> for Answer<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Answer<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what Airflow answers to /run")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        while let Some(field) = fields.next_key()? {
            match field {
                AnswerField::DagRun => return fields.next_value_seed(DagRun(self.0)),
                AnswerField::Other => fields.next_value::<IgnoredAny>()?,
            };
        }
        Ok(())
    }
}

impl<'de> DeserializeSeed<'de> for DagRun<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for DagRun<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a DAG run")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<(), A::Error> {
        let seen = self.0;
        while let Some(field) = fields.next_key()? {
            match field {
                RunField::DagId => seen.dag_id = Some(fields.next_value()?),
                RunField::RunId => seen.run_id = Some(fields.next_value()?),
                RunField::RunType => seen.run_type = fields.next_value()?,
                RunField::TeamName => seen.team_name = fields.next_value()?,
                RunField::TriggeringUserName => seen.triggering_user_name = fields.next_value()?,
                RunField::Other => {
                    fields.next_value::<IgnoredAny>()?;
                }
            }
        }
        seen.is_whole = true;
        Ok(())
    }
}

#[derive(Deserialize)]
struct RunRequest {
    pid: u32,
}

/// The number of the process that a task runs in, in the worker's PID namespace, from the body of a request to `/run`.
///
/// # Errors
/// For one that is not what Airflow sends.
pub(super) fn runner(body: &[u8]) -> Result<u32, Unreadable> {
    let request: RunRequest = serde_json::from_slice(body).map_err(|_| Unreadable::Form)?;
    Ok(request.pid)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use flate2::{Compression, write::GzEncoder};

    use super::*;

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap()
    }

    /// The form that Airflow 3.3.2 sends, and the order.
    fn answer(conf: &str, kwargs: &str) -> Vec<u8> {
        let text = format!(
            r#"{{"dag_run":{{"dag_id":"mesh_lab","run_id":"lab_1","logical_date":null,"run_type":"manual",
            "state":"running","conf":{conf},"triggering_user_name":"ada","consumed_asset_events":[],"note":null,
            "team_name":"finance"}},"task_reschedule_count":0,"max_tries":1,"next_kwargs":{kwargs}}}"#
        );
        text.into_bytes()
    }

    /// Text that packs badly.
    fn large(bytes: usize) -> String {
        let mut state = 1_u32;
        let letters = (0..bytes).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            char::from(b'a' + (state >> 24) as u8 % 26)
        });
        format!("{:?}", letters.collect::<String>())
    }

    /// What is kept of a body that comes over the wire.
    fn read(body: &[u8], coding: Option<&[u8]>) -> Result<Run, Unreadable> {
        let beginning = body.get(..MAX_BODY_BYTES);
        Run::read(beginning.unwrap_or(body), beginning.is_some(), coding)
    }

    #[test]
    fn the_answer_to_run_says_dag_run_and_person_packed_or_not() {
        let body = answer("{}", "null");
        let run = read(&body, None).unwrap();
        assert_eq!((&*run.dag_id, &*run.run_id), ("mesh_lab", "lab_1"));
        assert_eq!(run.triggered_by.as_deref(), Some("ada"));
        assert_eq!(run.team.as_deref(), Some("finance"));
        assert_eq!(run.run_type.as_deref(), Some("manual"));
        assert!(!run.is_cut);
        assert_eq!(read(&gzip(&body), Some(b"gzip")), Ok(run));
        assert_eq!(runner(br#"{"state":"running","pid":25388}"#), Ok(25388));
    }

    #[test]
    fn whatever_is_large_in_an_answer_dag_and_run_are_known_and_all_that_comes_before_it() {
        let spaces = format!("{:?}", " ".repeat(900_000));
        for (conf, kwargs, is_packed, person) in [
            // What a deferred task goes on with, behind the run.
            ("{}".to_owned(), large(300_000), false, Some("ada")),
            ("{}".to_owned(), large(300_000), true, Some("ada")),
            // What the run was triggered with, before the person.
            (large(100_000), "null".to_owned(), false, None),
            (large(200_000), "null".to_owned(), true, None),
            // Unpacked it is large, and not on the wire.
            (spaces, "null".to_owned(), true, Some("ada")),
            (
                format!("{:?}", " ".repeat(2 << 20)),
                "null".to_owned(),
                true,
                None,
            ),
        ] {
            let body = answer(&conf, &kwargs);
            let run = match is_packed {
                true => read(&gzip(&body), Some(b"gzip")),
                false => read(&body, None),
            };
            let run = run.unwrap();
            assert_eq!((&*run.dag_id, &*run.run_id), ("mesh_lab", "lab_1"));
            assert_eq!(run.run_type.as_deref(), Some("manual"));
            assert_eq!(run.triggered_by.as_deref(), person);
            assert_eq!(run.is_cut, person.is_none());
        }
    }

    #[test]
    fn a_beginning_of_any_length_says_the_same_or_less() {
        let body = answer("{}", "null");
        let whole = read(&body, None).unwrap();
        for (body, coding) in [(gzip(&body), Some(b"gzip".as_slice())), (body, None)] {
            for length in 0..body.len() {
                let beginning = &body[..length];
                match Run::read(beginning, true, coding) {
                    Ok(run) => {
                        assert!(run.agrees_with(&whole), "{length}: {run:?}");
                        assert!([None, Some("ada")].contains(&run.triggered_by.as_deref()));
                    }
                    Err(error) => assert_eq!(error, Unreadable::TooLarge, "{length}"),
                }
            }
        }
    }

    #[test]
    fn a_run_of_which_less_is_known_is_the_same_and_another_is_not() {
        let whole = read(&answer("{}", "null"), None).unwrap();
        let cut = Run {
            triggered_by: None,
            team: None,
            is_cut: true,
            ..whole.clone()
        };
        assert!(whole.agrees_with(&cut) && cut.agrees_with(&whole));
        let by_bob = Run {
            triggered_by: Some("bob".into()),
            ..whole.clone()
        };
        assert!(!whole.agrees_with(&by_bob));
        let of_another = Run {
            run_id: "lab_2".into(),
            ..cut
        };
        assert!(!whole.agrees_with(&of_another));
    }

    #[test]
    fn a_body_that_is_not_what_it_claims_is_passed_over() {
        let bomb = gzip(&vec![b' '; 2 << 20]);
        assert!(bomb.len() < MAX_BODY_BYTES);
        let whole = answer("{}", "null");
        let huge = format!(
            r#"{{"dag_run":{{"dag_id":"{}","run_id":"r"}}}}"#,
            "x".repeat(2000)
        );
        for (body, coding, verdict) in [
            (&whole[..], Some(b"gzip".as_slice()), Unreadable::NotGzip),
            (&bomb, Some(b"gzip"), Unreadable::TooLarge),
            (&[b' '; MAX_BODY_BYTES + 1], None, Unreadable::TooLarge),
            (&whole, Some(b"br"), Unreadable::Coding),
            (b"[]", None, Unreadable::Form),
            (br#"{"max_tries":1}"#, None, Unreadable::Form),
            (br#"{"dag_run":{"dag_id":"a"}}"#, None, Unreadable::Form),
            (
                br#"{"dag_run":{"dag_id":7,"run_id":"r"}}"#,
                None,
                Unreadable::Form,
            ),
            // Not all of it has come, though there was no more.
            (
                br#"{"dag_run":{"dag_id":"a","run_id":"r","#,
                None,
                Unreadable::Form,
            ),
            (huge.as_bytes(), None, Unreadable::Form),
            (
                br#"{"dag_run":{"dag_id":"a\u0000","run_id":"r"}}"#,
                None,
                Unreadable::Form,
            ),
            (b"", None, Unreadable::Form),
        ] {
            let text = String::from_utf8_lossy(&body[..body.len().min(60)]);
            assert_eq!(read(body, coding), Err(verdict), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_body_is_too_odd_to_be_read(body in proptest::collection::vec(proptest::num::u8::ANY, 0..400)) {
            for is_cut in [false, true] {
                let _ = Run::read(&body, is_cut, Some(b"gzip"));
                let _ = Run::read(&body, is_cut, None);
            }
            let _ = runner(&body);
        }
    }
}
