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
        Allowances, Client, Endpoint, Error, Expiry, Observer, Page, RateLimit, SearchRequest,
        Urgency, alert::Alert,
    },
    plain::plain,
    poll::{self, Facts, LookedUp, SearchOptions, WITHOUT_NEWS},
};

use progress::Progress;

mod progress;

/// An observer that ignores what the command does on the wire.
#[derive(Debug)]
struct Unobserved;

/// Maximum width of a column of the table, in characters.
const MAX_WIDTH: usize = 60;

/// The results of the tenants that were asked.
#[derive(Debug, Default)]
struct Outcome {
    tenants: usize,
    failed: usize,
    /// The ids of the tenants that are known: those of the configuration and clients of partners.
    found: HashSet<Arc<str>>,
    /// Number of tenants that may be missing because the clients of a partner are not all known.
    missing: usize,
    /// The sum of the counts.
    total: u128,
    /// Messages about tenants, a line each. They are written once the progress bar is gone.
    told: String,
}

/// Runs the command. A configured search, named by the query or the first one, runs for the
/// tenants that it names; any other query runs for every tenant. If clients are to be discovered,
/// they are looked up first.
///
/// # Errors
/// If the API or standard output fails. If the reader closes the pipe early, the command ends
/// without an error.
pub async fn run(config: &Config, search: &Search) -> anyhow::Result<()> {
    let asked = search.query.as_deref();
    let named = chosen(config, asked);
    tell_choice(config, asked, named);
    let tenants = || config.accounts.iter().flat_map(|account| &account.tenants);
    // Which clients there are is not known yet.
    let is_any_unknown = config.accounts.iter().any(|it| it.discover_clients);
    if !is_any_unknown && !tenants().any(|tenant| is_asked(named, tenant)) {
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

/// Returns the configured search that is meant, if any.
fn chosen<'c>(config: &'c Config, asked: Option<&str>) -> Option<&'c SearchOptions> {
    let mut searches = config.searches.iter();
    searches.find(|known| asked.is_none_or(|asked| *known.name == *asked))
}

/// Says what is done if the user may have meant something else.
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

/// Whether a tenant is asked. A query that is no configured search is for all tenants.
fn is_asked(named: Option<&SearchOptions>, tenant: &Tenant) -> bool {
    named.is_none_or(|named| named.is_for(&tenant.id))
}

/// Returns the request for the first page of every tenant.
fn request_for(search: &Search, named: Option<&SearchOptions>) -> SearchRequest {
    let query = match named {
        Some(known) => known.query.clone(),
        None => search.query.clone().unwrap_or_default(),
    };
    // A count needs no alerts, but a page size of 0 is not documented.
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

/// Asks the tenants one after another, and prints their alerts. The error is that of standard
/// output.
async fn read(
    config: &Config,
    search: &Search,
    named: Option<&SearchOptions>,
    outcome: &mut Outcome,
) -> anyhow::Result<()> {
    let request = request_for(search, named);
    let mut output = Results::new(search);
    let mut progress = Progress::new(output.output);
    let allowances = Allowances::default();
    for account in &config.accounts {
        let mut tenants = account.tenants.clone();
        // These tenants are partners: their clients are asked instead.
        let partners = account
            .discover_clients
            .then(|| std::mem::take(&mut tenants));
        tenants.retain(|tenant| is_asked(named, tenant));
        outcome.find(&tenants);
        let known = partners.as_ref().unwrap_or(&tenants).len();
        if known == 0 {
            continue;
        }
        let client = Client::new(account.options.clone(), &allowances, Arc::new(Unobserved)).await;
        let client = match client {
            Ok(client) => client,
            Err(error) => {
                // The error names the account.
                let why = chain(&error);
                if partners.is_some() {
                    outcome.miss(known, &why);
                } else {
                    outcome.tenants += known;
                    outcome.fail(known, &why);
                }
                continue;
            }
        };
        if let Some(partners) = partners {
            tenants = outcome
                .clients(&client, &account.options.name, &partners)
                .await;
            tenants.retain(|tenant| is_asked(named, tenant));
            outcome.find(&tenants);
        }
        outcome.tenants += tenants.len();
        for tenant in &tenants {
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
    outcome.judge_missing(named);
    if search.count {
        outcome.print_count()
    } else {
        output.end()
    }
}

/// Returns how many alerts a tenant has, as the API counts them.
async fn count(client: &Client, tenant: &Tenant, request: &SearchRequest) -> Result<u64, Error> {
    let asked = client.search_first(&tenant.id, request.clone(), Urgency::Poll);
    let (answer, request) = asked.await?;
    Ok(answer.page(request.page, false)?.total_results)
}

/// Prints a tenant's alerts page by page, each alert once, although pages shift while the result
/// changes. The outer error is that of the API, the inner one that of standard output.
async fn read_all(
    client: &Client,
    tenant: &Tenant,
    request: SearchRequest,
    output: &mut Results,
    progress: &mut Progress,
) -> Result<anyhow::Result<Shown>, Error> {
    // Hashes of the ids seen.
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
            // A full read ends here, too, whatever the answer says of a next page.
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
    /// Looks up the clients of partners. A partner whose clients cannot be looked up, or of which
    /// the server does not show all, counts as a tenant that may be missing.
    async fn clients(
        &mut self,
        client: &Client,
        account: &str,
        partners: &[Tenant],
    ) -> Vec<Tenant> {
        let ids = partners.iter().map(|partner| Arc::clone(&partner.id));
        let LookedUp {
            tenants,
            failed,
            short,
            unreadable,
            left_out,
        } = poll::look_up(client, ids.collect()).await;
        let of = format!("account {}", plain(account));
        for (partner, error) in failed {
            let partner = plain(&partner);
            let why = error.chain();
            self.miss(
                1,
                &format!("{of}, clients of {partner} cannot be looked up: {why}"),
            );
        }
        for (partner, more) in short {
            let partner = plain(&partner);
            let counts = format!("the server counts {more} more clients of {partner}");
            self.miss(1, &format!("{of}: {counts} than it shows"));
        }
        if unreadable > 0 {
            let items = format!("{unreadable} items of the lists cannot be read as clients");
            self.miss(unreadable as usize, &format!("{of}: {items}"));
        }
        if left_out > 0 {
            let more = format!("there are {left_out} more clients than an exporter searches");
            self.miss(left_out, &format!("{of}: {more}"));
        }
        tenants
    }

    /// Notes tenants that the search is for.
    fn find(&mut self, tenants: &[Tenant]) {
        let ids = tenants.iter().map(|tenant| Arc::clone(&tenant.id));
        self.found.extend(ids);
    }

    /// Notes that so many tenants may be missing.
    fn miss(&mut self, tenants: usize, why: &str) {
        self.missing += tenants;
        self.told.push_str(&message(why));
    }

    /// Counts the tenants that may be missing as such that could not be read, unless the search
    /// cannot be for them, because all tenants that it names were found. An account may have what
    /// another one lacks, so that this is decided after all accounts.
    fn judge_missing(&mut self, named: Option<&SearchOptions>) {
        let ids = named.and_then(|search| search.tenants.as_ref());
        let is_found = |id: &String| self.found.contains(id.as_str());
        if !ids.is_some_and(|ids| ids.iter().all(is_found)) {
            self.tenants += self.missing;
            self.failed += self.missing;
        }
    }

    /// Notes how the read of a tenant ended: complete, with something missing, or failed.
    fn note(&mut self, account: &str, tenant: &Tenant, read: Result<Option<String>, Error>) {
        let of = format!("account {}, tenant {}", plain(account), plain(&tenant.name));
        match read {
            Ok(None) => {}
            Ok(Some(lack)) => self.told.push_str(&message(&format!("{of}: {lack}"))),
            Err(error) => self.fail(1, &format!("{of}: {}", error.chain())),
        }
    }

    /// Notes that so many tenants could not be read.
    fn fail(&mut self, tenants: usize, why: &str) {
        self.failed += tenants;
        self.told.push_str(&message(why));
    }

    /// Prints the sum, unless a tenant's count is missing.
    fn print_count(&self) -> anyhow::Result<()> {
        if self.failed > 0 || self.tenants == 0 {
            return Ok(());
        }
        let total = u64::try_from(self.total)
            .context("the tenants' totals add up to more than any result can hold")?;
        print(&format!("{total}\n"))
    }

    /// Returns the result of the command, after all messages.
    fn verdict(&self) -> anyhow::Result<()> {
        let Self {
            tenants, failed, ..
        } = self;
        if *failed > 0 {
            anyhow::bail!("{failed} of {tenants} tenants could not be read");
        }
        if *tenants == 0 {
            anyhow::bail!(
                "nothing was searched: there is no activated client that the search is for"
            );
        }
        Ok(())
    }
}

/// What was shown of a tenant's result.
#[derive(Debug, Default)]
struct Shown {
    alerts: u64,
    /// The total that the API gave with the last page.
    total: u64,
    /// Items that cannot be read as alerts. Those of a page that came twice are counted twice.
    unreadable: u64,
}

// === impl Shown ===

impl Shown {
    /// Returns a message if fewer alerts were shown than there are.
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

/// The results while they are printed.
struct Results {
    output: Output,
    /// Whether an alert was printed, so that the next one needs a comma before it.
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

/// Returns a line for [`logging::write`], without characters that a server may have chosen to
/// mislead the reader of a terminal. Through the queue, as with [`logging::print_message`],
/// the line could appear while the progress bar occupies the terminal's line.
fn message(text: &str) -> String {
    format!("opsramp-exporter: {}\n", plain(text))
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
    fn token_obtained(&self, _: std::time::Duration, _: Expiry) {}
    fn token_failed(&self, _: &'static str, _: &Error) {}
    fn rate_limit(&self, _: &str, _: RateLimit) {}
    fn throttled(&self, _: &str, _: std::time::Duration) {}
}
