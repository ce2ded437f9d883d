//! The command `search`: one search, all pages, results on standard output.

use std::{
    collections::HashSet,
    io::{self, IsTerminal as _, Write as _},
    sync::Arc,
};

use anyhow::Context as _;
use serde_json::value::RawValue;
use xxhash_rust::xxh3::xxh3_64;

use crate::{
    cli::{Output, Search},
    config::Config,
    error_chain::chain,
    identity::Tenant,
    logging,
    opsramp::{
        Client, Endpoint, Error, Observer, Page, RateLimit, SearchRequest, Urgency, alert::Alert,
    },
    plain::plain,
    poll::{Facts, SearchOptions, WITHOUT_NEWS},
};

use progress::Progress;

mod progress;

/// Nobody looks at what a command does on the wire.
#[derive(Debug)]
struct Unobserved;

/// The widest column of the table.
const MAX_WIDTH: usize = 60;

/// What came of the tenants that were asked.
#[derive(Debug, Default)]
struct Outcome {
    tenants: usize,
    failed: usize,
    /// The sum of what a count found.
    total: u128,
    /// What is to be said of tenants, a line each, once the progress has left its line.
    told: String,
}

/// Runs it: the search that is asked for by its name or the first one, for the tenants that it
/// names; any other query, for every tenant.
///
/// # Errors
/// Where the API or standard output fails. A reader that has seen enough ends it, and is no
/// failure.
pub async fn run(config: &Config, search: &Search) -> anyhow::Result<()> {
    let asked = search.query.as_deref();
    let named = chosen(config, asked);
    tell_choice(config, asked, named);
    let tenants = || config.accounts.iter().flat_map(|account| &account.tenants);
    if !tenants().any(|tenant| is_asked(named, tenant)) {
        let search = named.map_or_else(String::new, |named| format!(" {}", named.name));
        let ids: Vec<_> = tenants().map(|tenant| &*tenant.id).collect();
        let ids = ids.join(", ");
        anyhow::bail!("the search{search} is for none of the tenants that are asked: {ids}");
    }
    let mut outcome = Outcome::default();
    match read(config, search, named, &mut outcome).await {
        Err(error) if is_closed_pipe(&error) => Ok(()),
        printed => {
            logging::write(&outcome.told);
            printed.and_then(|()| outcome.verdict())
        }
    }
}

/// The configured search that is meant, if it is one.
fn chosen<'c>(config: &'c Config, asked: Option<&str>) -> Option<&'c SearchOptions> {
    let mut searches = config.searches.iter();
    searches.find(|known| asked.is_none_or(|asked| *known.name == *asked))
}

/// Says what is done where something else may be meant.
fn tell_choice(config: &Config, asked: Option<&str>, named: Option<&SearchOptions>) {
    let hint = match (asked, named) {
        (None, Some(first)) if config.searches.len() > 1 => format!(
            "this is the first of {} searches, {}; ask for another with --search.query NAME",
            config.searches.len(),
            plain(&first.name)
        ),
        (Some(asked), None) if !asked.contains(':') => format!(
            "no search is called {}, so that it is sent as a query",
            plain(asked)
        ),
        _ => return,
    };
    logging::write(&message(&hint));
}

/// Whether a tenant is asked: any other query is for all of them.
fn is_asked(named: Option<&SearchOptions>, tenant: &Tenant) -> bool {
    named.is_none_or(|named| named.is_for(&tenant.id))
}

/// The request for the first page of every tenant.
fn request_for(search: &Search, named: Option<&SearchOptions>) -> SearchRequest {
    let query = match named {
        Some(known) => known.query.clone(),
        None => search.query.clone().unwrap_or_default(),
    };
    // A count needs no alerts, but a page of none is not documented.
    let page_size = match (search.count, named) {
        (true, _) => 1,
        (false, Some(known)) => known.page_size,
        (false, None) => 100,
    };
    SearchRequest {
        query,
        page: 1,
        page_size,
        sorted: true,
    }
}

/// Asks the tenants one after another, and prints what they have. The error is standard output's.
async fn read(
    config: &Config,
    search: &Search,
    named: Option<&SearchOptions>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let request = request_for(search, named);
    let mut output = Results::new(search);
    let mut progress = Progress::new(output.output);
    for account in &config.accounts {
        let asked = account.tenants.iter().filter(|it| is_asked(named, it));
        let tenants: Vec<&Tenant> = asked.collect();
        if tenants.is_empty() {
            continue;
        }
        outcome.tenants += tenants.len();
        let client = Client::new(account.options.clone(), Arc::new(Unobserved)).await;
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                // It names the account.
                outcome.fail(tenants.len(), &chain(&error));
                continue;
            }
        };
        for tenant in tenants {
            progress.begin();
            let read = if search.count {
                count(&client, tenant, &request).await.map(|count| {
                    outcome.total += u128::from(count);
                    None
                })
            } else {
                match read_all(&client, tenant, request.clone(), &mut output, &mut progress).await {
                    Ok(shown) => Ok(shown?.lack()),
                    Err(error) => Err(error),
                }
            };
            outcome.note(&account.options.name, tenant, read);
        }
    }
    drop(progress);
    if search.count {
        outcome.print_count()
    } else {
        output.end()
    }
}

/// How many a tenant has, as the API counts them.
async fn count(client: &Client, tenant: &Tenant, request: &SearchRequest) -> Result<u64, Error> {
    let asked = client.search_first(&tenant.id, request.clone(), Urgency::Poll);
    let (answer, request) = asked.await?;
    Ok(answer.page(request.page, false)?.total_results)
}

/// Prints a tenant's alerts page by page, each once: pages shift while the result changes. The outer
/// error is the API's, the inner one is standard output's.
async fn read_all(
    client: &Client,
    tenant: &Tenant,
    request: SearchRequest,
    output: &mut Results,
    progress: &mut Progress,
) -> Result<anyhow::Result<Shown>, Error> {
    // Hashes of ids.
    let mut seen = HashSet::new();
    let mut shown = Shown::default();
    let mut without_news = 0;
    let first = client.search_first(&tenant.id, request, Urgency::Poll);
    let (mut answer, mut request) = first.await?;
    loop {
        let page = answer.page(request.page, true)?;
        let is_new = |alert: &Alert<'_>| seen.insert(xxh3_64(alert.id.as_bytes()));
        let new: Vec<bool> = page.alerts.iter().map(is_new).collect();
        shown.alerts = seen.len() as u64;
        shown.total = page.total_results;
        shown.unreadable += page.unreadable as u64;
        if new.contains(&true) {
            without_news = 0;
            if let Err(error) = output.add(&page, &new) {
                return Ok(Err(error));
            }
        } else {
            without_news += 1;
            // As a full read does, whatever the answer says of a next page.
            if Facts::of(&request, &page).is_behind() || without_news > WITHOUT_NEWS {
                return Ok(Ok(shown));
            }
        }
        progress.show(&tenant.name, &page);
        match page.next_page {
            Some(next) => request.page = next,
            None => return Ok(Ok(shown)),
        }
        answer = client.search(&tenant.id, &request, Urgency::Poll).await?;
    }
}

// === impl Outcome ===

impl Outcome {
    /// A tenant was read, though something may lack, or it failed.
    fn note(&mut self, account: &str, tenant: &Tenant, read: Result<Option<String>, Error>) {
        let of = format!("account {}, tenant {}", plain(account), plain(&tenant.name));
        match read {
            Ok(None) => {}
            Ok(Some(lack)) => self.told.push_str(&message(&format!("{of}: {lack}"))),
            Err(error) => self.fail(1, &format!("{of}: {}", error.chain())),
        }
    }

    /// So many tenants could not be read.
    fn fail(&mut self, tenants: usize, why: &str) {
        self.failed += tenants;
        self.told.push_str(&message(why));
    }

    /// Prints the sum, unless it lacks something.
    fn print_count(&self) -> anyhow::Result<()> {
        if self.failed > 0 {
            return Ok(());
        }
        let total = u64::try_from(self.total)
            .context("the tenants' totals add up to more than any result can hold")?;
        print(&format!("{total}\n"))
    }

    /// What the command ends with, after all was told.
    fn verdict(&self) -> anyhow::Result<()> {
        let Self {
            tenants, failed, ..
        } = self;
        if *failed > 0 {
            anyhow::bail!("{failed} of {tenants} tenants could not be read");
        }
        Ok(())
    }
}

/// What was shown of a tenant's result.
#[derive(Debug, Default)]
struct Shown {
    alerts: u64,
    /// As the API counted them with the last page.
    total: u64,
    /// Items that are no alert. Those of a page that came twice are counted twice.
    unreadable: u64,
}

// === impl Shown ===

impl Shown {
    /// What is to be said where it is less than there is.
    fn lack(&self) -> Option<String> {
        let Self { alerts, total, .. } = self;
        let lacking = total.checked_sub(*alerts).filter(|lacking| *lacking > 0)?;
        let told = format!("{alerts} of {total} shown");
        Some(match self.unreadable.min(lacking) {
            0 => told,
            unreadable => format!("{told}, {unreadable} could not be read"),
        })
    }
}

/// The results on their way out.
struct Results {
    output: Output,
    /// Whether any was printed, so that the next needs a comma before it.
    begun: bool,
    rows: Vec<[String; 6]>,
}

// === impl Results ===

impl Results {
    fn new(search: &Search) -> Self {
        let output = search.output.unwrap_or_else(|| {
            if io::stdout().is_terminal() {
                Output::Table
            } else {
                Output::Jsonl
            }
        });
        Self {
            output,
            begun: false,
            rows: Vec::new(),
        }
    }

    /// Adds the alerts of a page that are new.
    fn add(&mut self, page: &Page<'_>, new: &[bool]) -> anyhow::Result<()> {
        if self.output == Output::Table {
            let alerts = page.alerts.iter().zip(new).filter(|(_, new)| **new);
            self.rows.extend(alerts.map(|(alert, _)| row(alert)));
            return Ok(());
        }
        let mut text = String::new();
        for (raw, _) in page.raw.iter().zip(new).filter(|(_, new)| **new) {
            let line = serde_json::from_str::<&RawValue>(raw).map(crate::record::compact_raw)?;
            let before = match (self.output, self.begun) {
                (Output::Json, false) => "[\n",
                (Output::Json, true) => ",\n",
                _ => "",
            };
            text.push_str(before);
            text.push_str(line.get());
            if self.output == Output::Jsonl {
                text.push('\n');
            }
            self.begun = true;
        }
        print(&text)
    }

    fn end(self) -> anyhow::Result<()> {
        match (self.output, self.begun) {
            (Output::Json, true) => print("\n]\n"),
            (Output::Json, false) => print("[]\n"),
            (Output::Jsonl, _) => Ok(()),
            (Output::Table, _) => print(&table(&self.rows)),
        }
    }
}

const HEADINGS: [&str; 6] = ["ID", "STATE", "STATUS", "CREATED", "RESOURCE", "SUBJECT"];

fn row(alert: &Alert<'_>) -> [String; 6] {
    let text = |text: Option<&str>| {
        let plain = plain(text.unwrap_or("-"));
        match plain.char_indices().nth(MAX_WIDTH) {
            Some((end, _)) => format!("{}…", &plain[..end]),
            None => plain,
        }
    };
    let resource = alert
        .resource
        .best_name()
        .or_else(|| alert.device.best_name());
    let created = alert
        .created_date
        .as_deref()
        .and_then(crate::opsramp::alert::parse_time);
    [
        text(Some(&alert.id)),
        text(alert.state.as_deref()),
        text(alert.status.as_deref()),
        created.map_or_else(|| text(alert.created_date.as_deref()), |at| at.to_string()),
        text(resource.map(AsRef::as_ref)),
        text(alert.subject.as_deref()),
    ]
}

fn table(rows: &[[String; 6]]) -> String {
    let mut widths = HEADINGS.map(str::len);
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let line = |cells: [&str; 6]| {
        let padded: Vec<String> = cells
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let head = line(HEADINGS);
    rows.iter().fold(head, |text, row| {
        text + &line(row.each_ref().map(String::as_str))
    })
}

/// A line for [`logging::write`]. By way of the queue, as with [`logging::tell`], it could come while
/// the progress has the line.
fn message(text: &str) -> String {
    format!("opsramp-exporter: {text}\n")
}

fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout();
    out.write_all(text.as_bytes())
        .and_then(|()| out.flush())
        .context("cannot write to standard output")
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let cause = error.downcast_ref::<io::Error>();
    cause.is_some_and(|cause| cause.kind() == io::ErrorKind::BrokenPipe)
}

// === impl Unobserved ===

impl Observer for Unobserved {
    fn request(&self, _: Endpoint, _: Option<u16>, _: std::time::Duration) {}
    fn token_requested(&self) {}
    fn token_obtained(&self, _: std::time::Duration, _: jiff::Timestamp) {}
    fn token_failed(&self, _: &'static str) {}
    fn rate_limit(&self, _: &str, _: RateLimit) {}
    fn throttled(&self, _: &str, _: std::time::Duration) {}
}
