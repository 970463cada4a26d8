//! What the body of a check's answer must be. Airflow answers 200 whatever it says of its database and scheduler.

use serde_json::Value;

use super::settings::ExpectedBody;

/// Says what is not as expected.
pub(super) fn check(expected: &ExpectedBody, body: &[u8]) -> Result<(), String> {
    let ExpectedBody { contains, json } = expected;
    if !contains.is_empty() && !has(body, contains.as_bytes()) {
        return Err(format!("its answer does not contain {contains:?}"));
    }
    if json.is_empty() {
        return Ok(());
    }
    let value: Value =
        serde_json::from_slice(body).map_err(|error| format!("its answer is no JSON: {error}"))?;
    for (pointer, wanted) in json {
        match value.pointer(pointer).map(text) {
            Some(found) if found == *wanted => {}
            // Whatever stands there is the endpoint's, and goes to logs.
            Some(found) => {
                let found: String = found.chars().take(64).collect();
                return Err(format!("{pointer} is {found:?}, not {wanted:?}"));
            }
            None => return Err(format!("its answer has no {pointer}")),
        }
    }
    Ok(())
}

fn has(body: &[u8], part: &[u8]) -> bool {
    body.windows(part.len()).any(|window| window == part)
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Airflow 3 answers at `/api/v2/monitor/health`, shortened.
    const AIRFLOW: &[u8] = br#"{"metadatabase":{"status":"healthy"},
        "scheduler":{"status":"unhealthy","latest_scheduler_heartbeat":null},"list":[1,true]}"#;

    #[test]
    fn a_body_is_judged_by_what_stands_at_pointers_and_by_what_it_contains() {
        let cases = [
            ("", &[("/metadatabase/status", "healthy")][..], ""),
            ("latest", &[("/list/0", "1"), ("/list/1", "true")], ""),
            ("", &[("/scheduler/latest_scheduler_heartbeat", "null")], ""),
            (
                "",
                &[
                    ("/metadatabase/status", "healthy"),
                    ("/scheduler/status", "healthy"),
                ],
                "/scheduler/status is \"unhealthy\", not \"healthy\"",
            ),
            (
                "",
                &[("/triggerer/status", "healthy")],
                "its answer has no /triggerer/status",
            ),
            (
                "triggerer",
                &[],
                "its answer does not contain \"triggerer\"",
            ),
        ];
        for (contains, json, wrong) in cases {
            let json = json
                .iter()
                .map(|(at, is)| ((*at).to_owned(), (*is).to_owned()));
            let expected = ExpectedBody {
                contains: contains.to_owned(),
                json: json.collect(),
            };
            let found = check(&expected, AIRFLOW).err().unwrap_or_default();
            assert_eq!(found, wrong);
        }
        let expected = ExpectedBody {
            json: vec![("/status".to_owned(), "healthy".to_owned())],
            ..ExpectedBody::default()
        };
        for other in [&b"<html>"[..], b"", b"\xff"] {
            let wrong = check(&expected, other).unwrap_err();
            assert!(wrong.starts_with("its answer is no JSON"), "{wrong}");
        }
    }
}
