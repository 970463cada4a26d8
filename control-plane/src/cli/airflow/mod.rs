//! `airflow`: which tasks call, and what those of a run have called.

mod status;
mod trace;

use super::Failure;
use super::arguments::AirflowCommand;

pub(super) fn run(command: &AirflowCommand) -> Result<(), Failure> {
    match command {
        AirflowCommand::Status(flags) => status::run(flags),
        AirflowCommand::Trace(flags) => trace::run(flags),
    }
}

/// A task instance as people name it: `dag.task[map index] try n`.
fn instance(
    dag_id: &str,
    task_id: &str,
    map_index: Option<i64>,
    try_number: Option<u64>,
) -> String {
    let mut text = format!("{}.{}", shown(dag_id), shown(task_id));
    if let Some(map_index) = map_index {
        text += &format!("[{map_index}]");
    }
    match try_number {
        Some(number) if number > 1 => text + &format!(" try {number}"),
        _ => text,
    }
}

/// A text that somebody else wrote, safe for a terminal.
fn shown(text: &str) -> String {
    text.escape_debug().to_string()
}

/// Rows under a header, in columns that are as wide as what is in them.
fn table<const N: usize>(header: [&str; N], rows: Vec<[String; N]>) -> String {
    let mut all = vec![header.map(str::to_owned)];
    all.extend(rows);
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = all.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    });
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(widths);
        let cells = cells.map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    all.iter().map(line).collect()
}
