//! The command `check`: goes through the set-up step by step, and says what works, and what to do
//! about what does not work.
//!
//! It is for the installation, and for the day when something no longer works. It asks what the
//! daemon would ask, in the order in which things can fail. It changes nothing, and shows no
//! secret. A step that needs a failed one is skipped, because its failure would say nothing new.

use std::{collections::HashSet, io};

use crate::{
    config::{ConfigError, Loaded},
    opsramp::Allowances,
    poll::SearchOptions,
    status::listed,
};

use self::report::{Outcome, Passed, Report, Trouble};

mod account;
mod local;
mod network;
mod report;
mod tls;

/// Advice about a file that does not answer.
const SILENT_FILE: &str = "look whether the file system answers; a local one is best";

/// Takes every step and reports each on `out`. Returns whether all passed.
///
/// # Errors
/// If `out` cannot be written to. It is no error if `out` is closed early.
pub async fn run(loaded: &Loaded, out: &mut dyn io::Write) -> io::Result<bool> {
    let config = &loaded.config;
    let mut report = Report::new(out);
    report.taken("configuration", configuration(loaded));
    let allowances = Allowances::default();
    let mut tenants = Some(Vec::new());
    for account in &config.accounts {
        let found = account::check(&mut report, account, &config.searches, &allowances).await;
        tenants = tenants.zip(found).map(|(all, found)| [all, found].concat());
    }
    if let Some(tenants) = tenants {
        let known = tenants.iter().map(|tenant| &*tenant.id).collect();
        for search in &config.searches {
            check_tenants(&mut report, search, &known, config.tenants_are_picked);
        }
    }
    local::check_state(&mut report, &config.state).await;
    local::check_sinks(&mut report, &config.sinks).await;
    local::check_web(&mut report, &config.web).await;
    report.end()
}

/// Reports a configuration that cannot be used, which leaves nothing else to check.
///
/// # Errors
/// If `out` cannot be written to. It is no error if `out` is closed early.
pub fn refuse(error: ConfigError, out: &mut dyn io::Write) -> io::Result<()> {
    let mut report = Report::new(out);
    let trouble = Trouble::new(
        format!("{:#}", anyhow::Error::new(error)),
        "correct it, and check again",
    );
    report.taken::<()>("configuration", Err(trouble));
    report.end().map(drop)
}

/// Checks that the tenants that a search names are among the `known` ones, of which some may have
/// been picked.
fn check_tenants(
    report: &mut Report<'_>,
    search: &SearchOptions,
    known: &HashSet<&str>,
    are_picked: bool,
) {
    let in_vain = search.in_vain(known);
    let named = search.tenants.as_ref().map_or(0, Vec::len);
    let asked = named - in_vain.len();
    if in_vain.is_empty() || are_picked && asked > 0 {
        return;
    }
    let what = match asked {
        0 => "nothing is asked".to_owned(),
        asked => format!("is asked of {asked} of its {named} tenants"),
    };
    let advice = if are_picked {
        "pick others (--opsramp.tenant, OPSRAMP_TENANT_ID)"
    } else {
        "correct the ids of its tenants"
    };
    let passed = Passed::new((), what).with_concern(format!(
        "neither a tenant of an account nor an activated client: {}; {advice}",
        listed(&in_vain)
    ));
    report.taken(&format!("search {}", search.name), Ok(passed));
}

fn configuration(loaded: &Loaded) -> Outcome<()> {
    let config = &loaded.config;
    let source = loaded.file.as_ref().map_or_else(
        || "from flags and the environment".to_owned(),
        |file| file.display().to_string(),
    );
    let count = |n: usize, one: &str, more: &str| match n {
        1 => format!("1 {one}"),
        n => format!("{n} {more}"),
    };
    let tenants = config.accounts.iter().map(|account| account.tenants.len());
    let mut found = vec![
        source,
        count(config.accounts.len(), "account", "accounts"),
        count(tenants.sum(), "tenant", "tenants"),
        count(config.searches.len(), "search", "searches"),
        count(config.sinks.len(), "sink", "sinks"),
    ];
    found.extend(loaded.overridden.clone());
    let passed = Passed::new((), found.join(", "));
    Ok(passed.with_concerns(&loaded.warnings))
}

#[cfg(test)]
mod tests;
