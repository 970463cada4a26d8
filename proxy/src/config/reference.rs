//! The table of settings, for `--help` and for the docs.

use std::fmt::Write as _;

use clap::{Arg, CommandFactory};

use super::environment::variable_of;
use super::settings::CommandLine;

/// Names each flag's variable in its help.
pub(super) fn with_variables(commands: clap::Command) -> clap::Command {
    commands.mut_subcommands(|command| {
        command.mut_args(|argument| {
            let help = argument
                .get_long_help()
                .or_else(|| argument.get_help())
                .map(ToString::to_string);
            match (variable_of(&argument), help) {
                (Some(variable), Some(help)) => argument.help(format!("{help} [env: {variable}]")),
                _ => argument,
            }
        })
    })
}

/// All settings as a Markdown page.
pub(super) fn markdown() -> String {
    let commands = CommandLine::command();
    let mut page = String::from("# Settings of sidewind-proxy\n");
    let about = commands.get_long_about().map(ToString::to_string);
    let _ = writeln!(page, "\n{}", about.unwrap_or_default());
    for command in commands.get_subcommands() {
        let arguments: Vec<&Arg> = command
            .get_arguments()
            .filter(|argument| argument.get_long().is_some())
            .collect();
        if arguments.is_empty() {
            continue;
        }
        let about = command.get_long_about().or_else(|| command.get_about());
        let _ = writeln!(page, "\n## sidewind-proxy {}\n", command.get_name());
        let _ = writeln!(
            page,
            "{}",
            about.map(ToString::to_string).unwrap_or_default()
        );
        let mut heading = None;
        for argument in arguments {
            if heading != Some(argument.get_help_heading()) {
                heading = Some(argument.get_help_heading());
                let _ = writeln!(
                    page,
                    "\n### {}\n",
                    argument.get_help_heading().unwrap_or("Flags")
                );
                page.push_str(
                    "| flag | variable | default | meaning |\n| --- | --- | --- | --- |\n",
                );
            }
            row(&mut page, argument);
        }
    }
    page
}

fn row(page: &mut String, argument: &Arg) {
    let flag = argument.get_long().unwrap_or_default();
    let value = argument
        .get_value_names()
        .filter(|_| argument.get_action().takes_values())
        .and_then(|names| names.first())
        .map(|name| format!(" {name}"))
        .unwrap_or_default();
    let variable = variable_of(argument).map_or_else(String::new, |name| format!("`{name}`"));
    let default = argument
        .get_default_values()
        .iter()
        .map(|value| value.to_string_lossy())
        .collect::<Vec<_>>()
        .join(",");
    let default = if default.is_empty() || !argument.get_action().takes_values() {
        String::new()
    } else {
        format!("`{default}`")
    };
    let choices = argument
        .get_possible_values()
        .iter()
        .filter(|_| argument.get_action().takes_values())
        // What `true` and `false` are need not be said.
        .filter_map(|choice| Some(format!(" `{}`: {}", choice.get_name(), choice.get_help()?)))
        .collect::<String>();
    let help = argument
        .get_long_help()
        .or_else(|| argument.get_help())
        .map(ToString::to_string)
        .unwrap_or_default();
    let help = format!("{help}{choices}")
        .replace('\n', " ")
        .replace('|', "\\|");
    let _ = writeln!(
        page,
        "| `--{flag}{value}` | {variable} | {default} | {help} |"
    );
}
