//! From the processes above a connection's owner to the task that it belongs to.

use super::environment;
use super::{Attributed, Owner, Unknown, process::Process, processes::Holder, title::Title};
use crate::telemetry::TaskContext;

/// Says whose a connection is, by what its processes show. `chain` goes from the owner up to the first process.
///
/// The shallowest process that has an attempt log open is the task's supervisor: what runs below it is the task's own
/// code, which may open whatever it likes. That holds for what descends from a worker alone.
pub(super) fn attribute<'p>(
    chain: &[Holder],
    process: impl Fn(u32) -> Option<&'p Process>,
) -> Result<Owner, Unknown> {
    let supervisor = chain.iter().rposition(|holder| !holder.logs.is_empty());
    if let Some(at) = supervisor
        && let Some(holder) = chain.get(at)
    {
        let [task] = holder.logs.as_slice() else {
            // A triggerer runs many tasks in one process.
            return Err(Unknown::Ambiguous);
        };
        let below = chain.get(..=at).unwrap_or_default();
        let ti_id = below
            .iter()
            .rev()
            .find_map(|holder| instance(&holder.title));
        return Ok(Owner::Task(Attributed {
            task: task.clone(),
            ti_id: ti_id.map(str::to_owned),
            parent: None,
        }));
    }
    for holder in chain {
        if let Some(task) = by_title(&holder.title) {
            return Ok(Owner::Task(task));
        }
        if let Title::Runner { ti_id } = &holder.title {
            return Ok(Owner::Instance(ti_id.clone()));
        }
        let environment = process(holder.pid).and_then(Process::environment);
        if let Some(task) = environment.and_then(|text| environment::task(&text)) {
            return Ok(Owner::Task(Attributed {
                task,
                ti_id: None,
                parent: None,
            }));
        }
    }
    Ok(Owner::NoTask)
}

fn instance(title: &Title) -> Option<&str> {
    match title {
        Title::Runner { ti_id } | Title::Supervisor { ti_id } => Some(ti_id),
        _ => None,
    }
}

fn by_title(title: &Title) -> Option<Attributed> {
    let Title::NamedRunner {
        dag_id,
        task_id,
        run_id: Some(run_id),
    } = title
    else {
        return None;
    };
    Some(Attributed {
        task: TaskContext {
            dag_id: dag_id.clone(),
            task_id: task_id.clone(),
            run_id: run_id.clone(),
            ..TaskContext::default()
        },
        ti_id: None,
        parent: None,
    })
}
