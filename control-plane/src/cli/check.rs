//! `config check`: reads a directory of resources as the server would.

use super::Failure;
use crate::config::Config;
use std::path::Path;

pub(super) fn run(directory: &Path) -> Result<(), Failure> {
    match Config::load(directory) {
        Ok(config) => {
            let counts = config.counts();
            println!(
                "{}: {} policies, {} service entries, {} routes, {} gateways, {} traffic policies, {} registrations, {} attestors, {} federated trust domains: all right",
                directory.display(),
                counts.policies,
                counts.entries,
                counts.routes,
                counts.gateways,
                counts.traffic_policies,
                counts.registrations,
                counts.attestors,
                counts.federated
            );
            Ok(())
        }
        Err(errors) => {
            let number = errors.0.len();
            let noun = if number == 1 {
                "thing is"
            } else {
                "things are"
            };
            Err(Failure::Usage(format!("{number} {noun} wrong:\n{errors}")))
        }
    }
}
