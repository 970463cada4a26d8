//! What registrations and attestors say together: two that are right alone can be wrong beside each other.

use super::federated_trust_domain::{EndpointProfile, MAX_FEDERATED};
use super::registration::{Condition, RegistrationRule};
use super::{ConfigError, Draft, PlacedRule};
use crate::attest::aws_iam::arn::check_role_arn;
use sidewind_identity::TrustDomain;
use std::collections::HashMap;

/// Most workloads that one registration may name by lists: they are compared one by one.
const MAX_COMBINATIONS: usize = 1024;

/// Everything that is wrong with the documents together.
pub(super) fn check(draft: &Draft) -> Vec<ConfigError> {
    let mut errors = Vec::new();
    known_sources(draft, &mut errors);
    default_identities(draft, &mut errors);
    clusters_apart(draft, &mut errors);
    accounts_apart(draft, &mut errors);
    ties(draft, &mut errors);
    federation(draft, &mut errors);
    known_airflows(draft, &mut errors);
    limited_routes(draft, &mut errors);
    errors
}

/// A limit on a route that does not exist would count nothing.
fn limited_routes(draft: &Draft, errors: &mut Vec<ConfigError>) {
    if draft.limited_routes.is_empty() {
        return;
    }
    let known = draft.routes.names();
    for (at, name) in &draft.limited_routes {
        if !known.contains(name) {
            let message = format!(
                "names route {name:?}, which no document describes; a route is NAMESPACE/NAME, and a rule of it \
                 NAMESPACE/NAME/RULE"
            );
            errors.push(at.error(message));
        }
    }
}

/// A registration of a cluster or issuer that is not configured would wait for ever.
fn known_sources(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let clusters = draft.config.attestors.kubernetes.iter();
    let clusters: Vec<&str> = clusters.map(|cluster| cluster.cluster.as_str()).collect();
    let issuers = draft.config.attestors.oidc.iter();
    let issuers: Vec<&str> = issuers.map(|issuer| issuer.issuer.as_str()).collect();
    let accounts = aws_accounts(draft);
    let authorities = draft.config.attestors.x509.iter();
    let authorities: Vec<&str> = authorities.map(|a| a.authority.as_str()).collect();
    for placed in &draft.registrations {
        let (key, word, known) = match placed.rule.attestor {
            "kubernetes" => ("kubernetes:cluster", "cluster", &clusters),
            "oidc" => ("oidc:issuer", "issuer", &issuers),
            "aws-iam" => ("aws-iam:account", "account", &accounts),
            "x509" => ("x509:authority", "authority", &authorities),
            _ => continue,
        };
        if known.is_empty() {
            let message = format!(
                "are of attestor {}, which no AttestorConfig configures: it would name the {word}",
                placed.rule.attestor
            );
            errors.push(placed.selectors_at.error(message));
            continue;
        }
        let named = placed.rule.conditions.iter().find(|c| c.key == key);
        if let Some(condition) = named {
            let unknown = |value: &&String| !known.contains(&value.as_str());
            for value in condition.any_of.iter().filter(unknown) {
                let known = known.join(", ");
                let message = format!(
                    "name {word} {value:?}, which no AttestorConfig configures; there are {known}"
                );
                errors.push(placed.selectors_at.error(message));
            }
        } else if placed.rule.attestor == "oidc" {
            let message = "must name `issuer`: subjects of two issuers can be the same text";
            errors.push(placed.selectors_at.error(message.to_owned()));
        } else if placed.rule.attestor == "x509" {
            let message = "must name `authority`: two authorities can certify the same name";
            errors.push(placed.selectors_at.error(message.to_owned()));
        }
    }
}

/// Tasks of a registration whose Airflow is not configured would never have an identity.
fn known_airflows(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let airflows = &draft.config.attestors.airflow;
    for placed in &draft.registrations {
        let terms = placed.rule.task_identities.as_ref();
        let named = terms.and_then(|terms| terms.airflow.as_ref());
        let (Some(named), Some(at)) = (named, &placed.airflow_at) else {
            continue;
        };
        if !airflows.iter().any(|known| known.name == *named) {
            let known: Vec<&str> = airflows.iter().map(|known| known.name.as_str()).collect();
            let message = format!(
                "names Airflow {named:?}, which no AttestorConfig configures; there are {known:?}"
            );
            errors.push(at.error(message));
        }
    }
}

/// The accounts whose roles are taken, each once.
fn aws_accounts(draft: &Draft) -> Vec<&str> {
    let regions = draft.config.attestors.aws_iam.iter();
    let accounts = regions.flat_map(|region| region.accounts.iter().map(String::as_str));
    let mut accounts: Vec<&str> = accounts.collect();
    accounts.sort_unstable();
    accounts.dedup();
    accounts
}

/// With several accounts, one role's name in two of them are two roles. And an ARN that STS never says would
/// wait for ever.
fn accounts_apart(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let accounts = aws_accounts(draft);
    for placed in &draft.registrations {
        let rule = &placed.rule;
        if rule.attestor != "aws-iam" {
            continue;
        }
        let arns = rule
            .conditions
            .iter()
            .filter(|c| c.key == "aws-iam:role-arn");
        for arn in arns.flat_map(|condition| &condition.any_of) {
            if let Err(problem) = check_role_arn(arn, &accounts) {
                let message = format!("name role {arn:?}, which {problem}");
                errors.push(placed.selectors_at.error(message));
            }
        }
        let telling = ["aws-iam:role-arn", "aws-iam:role-id", "aws-iam:account"];
        let template = rule.spiffe_id.template();
        let apart = telling
            .iter()
            .any(|key| rule.names(key) || template.uses(key));
        if accounts.len() > 1 && !apart {
            let message = "could be of roles of two accounts; name `roleArn` or `accounts`";
            errors.push(placed.selectors_at.error(message.to_owned()));
        }
    }
}

/// Whoever names a foreign trust domain whose bundle nobody fetches would wait for ever.
fn federation(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let known: Vec<&TrustDomain> = draft
        .federated
        .iter()
        .map(|placed| &placed.domain.trust_domain)
        .collect();
    let own = draft.expectations.trust_domain.as_ref();
    for placed in &draft.registrations {
        let named = placed.rule.federates_with.iter();
        for domain in named.filter(|domain| !known.contains(domain)) {
            let message =
                format!("names {domain}, which no FederatedTrustDomain configures; make one");
            errors.extend(placed.federates_at.as_ref().map(|at| at.error(message)));
        }
    }
    for (place, domain) in &draft.endpoint_identities {
        if own.is_some_and(|own| own != domain) && !known.contains(&domain) {
            errors.push(place.error(format!(
                "is of trust domain {domain}, which no FederatedTrustDomain configures; make one"
            )));
        }
    }
    for placed in &draft.federated {
        let EndpointProfile::Spiffe { endpoint, .. } = &placed.domain.profile else {
            continue;
        };
        let server = endpoint.trust_domain();
        let is_known = own == Some(server) || known.contains(&server);
        // Without knowing whose control plane it is for, the one that is not configured may be its own.
        if own.is_some() && !is_known {
            let message = format!(
                "is of trust domain {server}, which no FederatedTrustDomain configures; make one"
            );
            errors.extend(placed.endpoint_at.as_ref().map(|at| at.error(message)));
        }
    }
    if let Some(placed) = draft.federated.get(MAX_FEDERATED) {
        let message =
            format!("is one too many; there may be {MAX_FEDERATED} foreign trust domains");
        errors.push(placed.trust_domain_at.error(message));
    }
}

/// Two clusters with default identities would have the same ones.
fn default_identities(draft: &Draft, errors: &mut Vec<ConfigError>) {
    for (place, cluster) in draft.default_identities.iter().skip(1) {
        let other = draft
            .default_identities
            .first()
            .map_or("", |(_, name)| name);
        errors.push(place.error(format!(
            "only one cluster can give default identities, and {other} does: {cluster}'s would be the same"
        )));
    }
}

/// With several clusters, one namespace and service account in two of them are two workloads.
fn clusters_apart(draft: &Draft, errors: &mut Vec<ConfigError>) {
    if draft.config.attestors.kubernetes.len() < 2 {
        return;
    }
    const KEY: &str = "kubernetes:cluster";
    for placed in &draft.registrations {
        let rule = &placed.rule;
        if rule.attestor != "kubernetes" || placed.shared_across_clusters {
            continue;
        }
        let template = rule.spiffe_id.template();
        let one_cluster = |c: &Condition| c.key == KEY && c.any_of.len() == 1;
        let apart =
            template.uses(KEY) || template.is_literal() && rule.conditions.iter().any(one_cluster);
        if !apart {
            let remedy = if template.is_literal() {
                "name the cluster under `selectors`"
            } else {
                "put {kubernetes.cluster} into it"
            };
            errors.push(placed.id_at.error(format!(
                "could be the same for workloads of two clusters; {remedy}, or say `sharedAcrossClusters: true`"
            )));
        }
    }
}

/// Two registrations that are as specific as each other and select the same workload.
fn ties(draft: &Draft, errors: &mut Vec<ConfigError>) {
    let mut seen: HashMap<(&str, Combination<'_>), &PlacedRule> = HashMap::new();
    for placed in &draft.registrations {
        let Some(combinations) = combinations(&placed.rule) else {
            errors.push(placed.selectors_at.error(format!(
                "have more than {MAX_COMBINATIONS} combinations; make several registrations of it"
            )));
            continue;
        };
        let mut told = false;
        for combination in combinations {
            let key = (placed.rule.attestor, combination);
            match seen.get(&key) {
                Some(other) if !std::ptr::eq(*other, placed) => {
                    if !told {
                        errors.push(placed.selectors_at.error(format!(
                            "select the same workloads as Registration {} at {}; make one of the two more specific",
                            other.rule.name, other.selectors_at
                        )));
                        told = true;
                    }
                }
                Some(_) => {}
                None => {
                    seen.insert(key, placed);
                }
            }
        }
    }
}

/// A selector's key and value for each condition.
type Combination<'a> = Vec<(&'a str, &'a str)>;

/// Every choice of one value for each condition.
fn combinations(rule: &RegistrationRule) -> Option<Vec<Combination<'_>>> {
    let mut combinations = vec![Vec::new()];
    for condition in &rule.conditions {
        if combinations.len() * condition.any_of.len() > MAX_COMBINATIONS {
            return None;
        }
        let mut longer = Vec::new();
        for combination in &combinations {
            for value in &condition.any_of {
                let mut one: Combination<'_> = combination.clone();
                one.push((condition.key.as_str(), value.as_str()));
                longer.push(one);
            }
        }
        combinations = longer;
    }
    Some(combinations)
}
