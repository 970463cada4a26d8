//! Environment variables as flags: `--drain-timeout` is `SIDEWIND_DRAIN_TIMEOUT`, by one rule for all.

use std::collections::BTreeMap;
use std::ffi::OsString;

use clap::Arg;

use super::error::gives_flag;

const PREFIX: &str = "SIDEWIND_";

/// The process's `SIDEWIND_…` variables that hold anything.
#[derive(Debug, Default)]
pub(super) struct Environment(BTreeMap<String, OsString>);

/// The process's `AWS_…` and `AIRFLOW_CTX_…` variables that hold anything: settings of the workload's that are the
/// proxy's too.
#[derive(Default)]
pub(super) struct WorkloadVariables(BTreeMap<String, String>);

impl WorkloadVariables {
    pub(super) fn new(variables: &[(OsString, OsString)]) -> Self {
        let text = |(name, value): &(OsString, OsString)| {
            let name = name
                .to_str()
                .filter(|name| name.starts_with("AWS_") || name.starts_with("AIRFLOW_CTX_"))?;
            let value = value.to_str().filter(|value| !value.is_empty())?;
            Some((name.to_owned(), value.to_owned()))
        };
        Self(variables.iter().filter_map(text).collect())
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }
}

impl Environment {
    pub(super) fn new(variables: impl IntoIterator<Item = (OsString, OsString)>) -> Self {
        Self(
            variables
                .into_iter()
                .filter_map(|(name, value)| Some((name.into_string().ok()?, value)))
                .filter(|(name, value)| name.starts_with(PREFIX) && !value.is_empty())
                .collect(),
        )
    }

    /// The flags that the command takes and the command line leaves to a variable, as `--flag=value`.
    pub(super) fn arguments(
        &self,
        command: &clap::Command,
        given: &[OsString],
    ) -> Vec<(String, OsString)> {
        command
            .get_arguments()
            .filter_map(|argument| {
                let flag = argument.get_long()?;
                let value = self.0.get(&variable_of(argument)?)?;
                let names = argument.get_all_aliases().unwrap_or_default();
                if gives_flag(given, flag) || names.iter().any(|name| gives_flag(given, name)) {
                    return None;
                }
                let mut text = OsString::from(format!("--{flag}="));
                text.push(value);
                Some((flag.to_owned(), text))
            })
            .collect()
    }

    /// Variables that look like ours and set nothing: misspelt, most likely. Kubernetes adds variables for each
    /// Service of the namespace, so what it makes of one named sidewind is left out.
    pub(super) fn unknown(&self, commands: &clap::Command) -> Vec<String> {
        let known: Vec<String> = commands
            .get_subcommands()
            .flat_map(clap::Command::get_arguments)
            .filter_map(variable_of)
            .collect();
        self.0
            .keys()
            .filter(|name| !known.contains(name) && !is_service_link(name))
            .cloned()
            .collect()
    }
}

/// The variable that sets this flag; none for switches such as `--remove`, which are deeds and not settings.
pub(super) fn variable_of(argument: &Arg) -> Option<String> {
    let flag = argument.get_long()?;
    argument
        .get_action()
        .takes_values()
        .then(|| variable_name(flag))
}

/// `drain-timeout` → `SIDEWIND_DRAIN_TIMEOUT`.
pub(super) fn variable_name(flag: &str) -> String {
    format!("{PREFIX}{}", flag.to_ascii_uppercase().replace('-', "_"))
}

fn is_service_link(name: &str) -> bool {
    name.ends_with("_SERVICE_HOST")
        || name.ends_with("_PORT")
        || name.contains("_SERVICE_PORT")
        || name.contains("_PORT_")
}
