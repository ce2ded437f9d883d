//! Checks of one account: the way to the server, a token, the clock, a search for each tenant.
//!
//! Tokens and searches are requested by the daemon's own client, so that what passes here works
//! there. The client's observer sees what its answers leave out (statuses, allowances, dates).

use std::{collections::HashMap, slice, sync::Arc, time::Duration};

use jiff::{SignedDuration, Timestamp};
use parking_lot::Mutex;

use super::{
    SILENT_FILE,
    network::{self, Connection, Endpoint, Proxy, milliseconds},
    report::{Chain, Outcome, Passed, Report, Trouble},
    tls,
};
use crate::{
    clock,
    config::{Account, is_plain_http_to_elsewhere},
    error_chain::chain,
    identity::Tenant,
    opsramp::{
        self, Allowances, Client, Error, Observer, RateLimit, SearchRequest, TokenInfo, Urgency,
    },
    poll::{self, SearchOptions},
    reading,
    secret::SecretSource,
};

/// The difference between clocks above which there is a warning.
const SKEW: SignedDuration = SignedDuration::from_secs(30);
/// Number of a partner's clients that are searched; there may be a thousand.
const CLIENTS_TRIED: usize = 5;

/// Advice about a redirect, which is never followed.
const REDIRECTED: &str = "set url to where the redirect leads, if that is OpsRamp";

/// What the client does not return, as its observer has seen it.
#[derive(Debug, Default)]
struct Seen(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    answered: bool,
    /// How far the server's clock is ahead.
    ahead: Option<SignedDuration>,
    last_status: Option<u16>,
    rate_limits: HashMap<String, RateLimit>,
}

/// What the steps of one account share.
struct Checked<'a> {
    account: &'a Account,
    searches: &'a [SearchOptions],
    seen: Arc<Seen>,
}

/// The searches and tenants of an account that have had their step.
#[derive(Default)]
struct Asked<'a> {
    searches: Vec<&'a SearchOptions>,
    /// Searches whose query no answer was about: the tenant failed for a reason of its own.
    in_vain: Vec<&'a SearchOptions>,
    tenants: Vec<AskedTenant>,
}

/// The clients of a partner.
struct Clients {
    activated: Vec<Tenant>,
    /// Whether no more are known to exist.
    are_all: bool,
}

/// A tenant of which another search may be asked.
struct AskedTenant {
    tenant: Tenant,
    /// Whether the answer may be about the query: the tenant has answered, has refused another
    /// query, or has not been asked yet.
    tells: bool,
}

/// Takes the steps of an account. Returns its tenants, unless some of them could not be looked up.
pub(super) async fn check(
    report: &mut Report<'_>,
    account: &Account,
    searches: &[SearchOptions],
    allowances: &Allowances,
) -> Option<Vec<Tenant>> {
    let options = &account.options;
    let mut chain = report.about(format!("account {}, ", options.name));
    let checked = Checked {
        account,
        searches,
        seen: Arc::default(),
    };
    let credentials = chain.taken("credentials", checked.credentials().await);
    let api = reach(&mut chain, options, &options.url).await;
    let token_endpoint = if Endpoint::of(&options.token_url) == Endpoint::of(&options.url) {
        api
    } else {
        reach(&mut chain, options, &options.token_url).await
    };
    let client = chain
        .step("token", credentials.and(token_endpoint), async |()| {
            checked.token(allowances).await
        })
        .await;
    let answered = checked.seen.0.lock().answered.then_some(());
    chain
        .step("clock", answered, async |()| checked.clock())
        .await;
    let client = client.zip(api).map(|(client, ())| client);
    let mut asked = Asked::default();
    let mut are_all_known = true;
    if account.discover_clients {
        for partner in &account.tenants {
            are_all_known &= checked
                .partner(&mut chain, client.as_ref(), partner, &mut asked)
                .await;
        }
    } else {
        for tenant in account.tenants.clone() {
            checked
                .search(&mut chain, client.as_ref(), tenant, &mut asked)
                .await;
        }
    }
    checked
        .other_searches(&mut chain, client.as_ref(), &mut asked)
        .await;
    let tenants = asked.tenants.into_iter().map(|asked| asked.tenant);
    are_all_known.then(|| tenants.collect())
}

/// Takes the steps of the way to the server of a URL, up to an encrypted connection.
async fn reach(chain: &mut Chain<'_, '_>, options: &opsramp::Options, url: &str) -> Option<()> {
    let limit = options.connect_timeout;
    let Some(target) = Endpoint::of(url) else {
        let wrong = Trouble::new("it cannot be taken apart", "write it as https://host");
        return chain.taken::<()>("URL", Err(wrong));
    };
    let proxy = match Proxy::before(&target, options) {
        None => None,
        Some(proxy) => Some(chain.taken("proxy", proxy.map(shown))?),
    };
    let (first, from, next) = match &proxy {
        None => (
            &target,
            "the account's URL",
            "look whether host and port are right, and whether a firewall lets this machine out; where \
             only a proxy may, set proxy_url or HTTPS_PROXY"
                .to_owned(),
        ),
        Some(Proxy { endpoint, from, .. }) => (
            endpoint,
            *from,
            format!(
                "look whether the proxy's host and port in {from} are right, whether it runs, and whether a \
                 firewall lets this machine reach it"
            ),
        ),
    };
    let addresses = chain
        .step(&format!("DNS of {}", first.host), Some(()), async |()| {
            network::look_up(first, from, limit).await
        })
        .await;
    let mut connection = chain
        .step(&format!("TCP to {first}"), addresses, async |addresses| {
            network::connect(addresses, &next, limit).await
        })
        .await;
    let shake = async |connection: Connection, with: &Endpoint| {
        tls::shake_hands(with, connection, &options.tls, limit, clock::now()).await
    };
    if let Some(proxy) = &proxy {
        if proxy.endpoint.tls {
            let name = format!("TLS with the proxy {}", proxy.endpoint);
            connection = chain
                .step(&name, connection, async |plain| {
                    shake(plain, &proxy.endpoint).await
                })
                .await;
        }
        if target.tls {
            connection = chain
                .step("tunnel", connection, async |through| {
                    let opened = tokio::time::timeout(limit, proxy.tunnel(&target, through));
                    opened.await.unwrap_or_else(|_| {
                        Err(Trouble::new(
                            format!(
                                "no answer of the proxy within {}",
                                humantime::format_duration(limit)
                            ),
                            "look whether the proxy works, and whether it can reach the host",
                        ))
                    })
                })
                .await;
        }
    }
    let name = format!("TLS with {target}");
    chain
        .step(&name, connection, async |connection| {
            if target.tls {
                let shaken = shake(connection, &target).await?;
                return Ok(Passed {
                    value: (),
                    found: shaken.found,
                    concern: shaken.concern,
                });
            }
            let passed = Passed::new((), "none, the URL starts with http://");
            Ok(if is_plain_http_to_elsewhere(url) {
                passed.with_concern("the secret and the alerts can be read on the way; use https")
            } else {
                passed
            })
        })
        .await
}

fn shown(proxy: Proxy) -> Passed<Proxy> {
    let found = format!("{} (from {})", proxy.endpoint, proxy.from);
    Passed::new(proxy, found)
}

/// Names a tenant by its name and id.
fn called(tenant: &Tenant) -> String {
    if tenant.name == tenant.id {
        tenant.id.to_string()
    } else {
        format!("{} ({})", tenant.name, tenant.id)
    }
}

/// Checks whether the key or the secret can be read.
async fn read(what: &str, source: &SecretSource) -> Result<(), Trouble> {
    let read = {
        let source = source.clone();
        reading::once(move || source.read())
    };
    match (read.await, source) {
        (None, SecretSource::File(path)) => Err(Trouble::new(
            format!("the {what} {}", reading::unread(slice::from_ref(path))),
            SILENT_FILE,
        )),
        (Some(Err(error)), _) => {
            let cause = anyhow::Error::new(error);
            Err(Trouble::new(format!("{cause:#}"), unreadable(what, source)))
        }
        (None | Some(Ok(_)), _) => Ok(()),
    }
}

/// Says what to do if the key or the secret cannot be read.
fn unreadable(what: &str, source: &SecretSource) -> String {
    match source {
        // The unit names this file, and systemd creates it only while the service runs. Nobody has
        // done anything wrong.
        SecretSource::File(path) if path.starts_with(reading::CREDENTIALS) && !path.exists() => {
            let variable = match what {
                "secret" => "OPSRAMP_CLIENT_SECRET_FILE=/etc/opsramp-exporter/client-secret",
                _ => "OPSRAMP_CLIENT_ID",
            };
            format!(
                "systemd puts it there while the service runs, for root and the service alone; \
                 to check before that, set {variable}"
            )
        }
        _ => "the file has to hold it and nothing else, and to be readable for the user that the \
              exporter runs as"
            .to_owned(),
    }
}

// === impl Checked ===

impl Checked<'_> {
    /// The credentials, by what messages call them.
    fn sources(&self) -> [(&'static str, &SecretSource); 2] {
        let options = &self.account.options;
        [
            ("key", &options.client_id),
            ("secret", &options.client_secret),
        ]
    }

    async fn credentials(&self) -> Outcome<()> {
        let mut found = Vec::new();
        for (what, source) in self.sources() {
            read(what, source).await?;
            found.push(match source {
                SecretSource::Value(_) => format!("the {what} is set"),
                SecretSource::File(path) => format!("the {what} is in {}", path.display()),
            });
        }
        Ok(Passed::new((), found.join(", ")))
    }

    async fn token(&self, allowances: &Allowances) -> Outcome<Client> {
        // A mistake in the files of TLS has failed the step of TLS already, and this step was skipped.
        // Over plain HTTP that step reads no files, and the mistake shows here.
        let options = self.account.options.clone();
        let client = Client::new(options, allowances, Arc::clone(&self.seen) as _)
            .await
            .map_err(|error| {
                Trouble::new(chain(&error), "look at the account's tls and proxy_url")
            })?;
        let token = client
            .token()
            .await
            .map_err(|error| self.token_trouble(&error))?;
        let TokenInfo {
            took,
            remaining,
            scope,
        } = token;
        let scope = scope.map_or(String::new(), |scope| format!(", scope {scope}"));
        // Rounded to seconds: the rest is only the time since the answer.
        let left = Duration::from_secs(remaining.as_secs_f64().round() as u64);
        let found = format!(
            "in {}, valid for {}{scope}",
            milliseconds(took),
            humantime::format_duration(left)
        );
        Ok(Passed::new(client, found))
    }

    fn token_trouble(&self, error: &Error) -> Trouble {
        let status = self.seen.0.lock().last_status;
        let next = match error {
            Error::Auth { .. } if let Some(doubt) = self.doubt() => doubt,
            Error::Auth { .. } => {
                "compare key and secret with the integration's (Setup > Integrations > Custom \
                 Integration, OAUTH2; a key of one OpsRamp instance is none of another)"
                    .to_owned()
            }
            Error::Http { .. } if matches!(status, Some(404 | 405)) => format!(
                "look whether url is that of OpsRamp, and try another token_url than {}: it ends in \
                 /auth/oauth/token, on some instances in /tenancy/auth/oauth/token",
                self.account.options.token_url
            ),
            Error::Http {
                status: 300..=399, ..
            } => REDIRECTED.to_owned(),
            Error::Decode { .. } | Error::TooLarge { .. } => format!(
                "something else than OpsRamp answers at {}, such as a login page; correct url \
                 and token_url",
                self.account.options.token_url
            ),
            other => self.common_advice(other),
        };
        Trouble::new(error.chain(), next)
    }

    /// Says what about the key or the secret looks unintended, such as the traces of an editor or
    /// a copy.
    fn doubt(&self) -> Option<String> {
        self.sources().into_iter().find_map(|(what, source)| {
            let doubt = source.read().ok()?.doubt()?;
            Some(format!("the {what} {doubt}"))
        })
    }

    /// Says what to do about failures that do not depend on what was asked.
    fn common_advice(&self, error: &Error) -> String {
        match error {
            Error::CutOff { .. } => {
                "try again; the connection was cut: look whether a proxy or firewall on the way limits the \
                 size or the time of answers"
                    .to_owned()
            }
            Error::Throttled { .. } => {
                "wait a minute; who else uses this key or tenant uses the same allowance".to_owned()
            }
            Error::Timeout { .. } => {
                "try again; where OpsRamp is slow, raise the account's timeout".to_owned()
            }
            Error::Connect { .. } => {
                "try again; look whether a firewall or proxy cuts requests off, and whether the \
                 server wants a certificate of ours (tls.cert_file)"
                    .to_owned()
            }
            _ => {
                "try again in some minutes; OpsRamp or a gateway before it is in trouble".to_owned()
            }
        }
    }

    fn clock(&self) -> Outcome<()> {
        let Some(ahead) = self.seen.0.lock().ahead else {
            return Ok(Passed::new((), "the server does not tell its time"));
        };
        let apart = ahead.abs();
        let seconds = apart.as_secs();
        if apart <= SKEW {
            let found = format!("{seconds} s apart from the server's");
            return Ok(Passed::new((), found));
        }
        let side = if ahead.is_positive() {
            "behind"
        } else {
            "ahead of"
        };
        let found = format!("{seconds} s {side} the server's");
        Ok(Passed::new((), found)
            .with_concern("set the clock, best by NTP: detection delays are measured against it"))
    }

    async fn clients(&self, client: &Client, partner: &Tenant) -> Outcome<Clients> {
        // As the daemon looks them up, which bounds the pages.
        let answer = poll::look_up_partner(client, &partner.id).await;
        let more = answer
            .more
            .map_err(|error| self.tenant_trouble(&error, partner, "clients"))?;
        let all = answer.clients.len();
        let activated = answer.clients.into_iter().filter(|found| found.activated);
        let activated: Vec<_> = activated
            .map(|found| Tenant {
                id: found.id.into(),
                name: found.name.into(),
            })
            .collect();
        let at_least = if answer.is_cut { "at least " } else { "" };
        let (count, tried) = (activated.len(), CLIENTS_TRIED);
        let mut found = format!("{at_least}{all}, {count} of them activated");
        if count > tried {
            found = format!("{found}; the first {tried} are searched here");
        }
        let mut concerns = Vec::new();
        if more > 0 && !answer.is_cut {
            concerns.push(format!(
                "the server counts {more} more clients than it shows; give the integration a role that may \
                 view all clients"
            ));
        } else if count == 0 {
            concerns.push("no client is activated, so that nothing is searched".to_owned());
        }
        if answer.unreadable > 0 {
            concerns.push(format!(
                "the server lists {} items that cannot be read as clients; they are not searched",
                answer.unreadable
            ));
        }
        let clients = Clients {
            activated,
            are_all: more == 0 && !answer.is_cut,
        };
        Ok(Passed::new(clients, found).with_concerns(&concerns))
    }

    /// Takes the steps of a partner: looks its clients up, and searches some of them. Returns
    /// whether all of them are known.
    async fn partner<'a>(
        &'a self,
        chain: &mut Chain<'_, '_>,
        client: Option<&Client>,
        partner: &Tenant,
        asked: &mut Asked<'a>,
    ) -> bool {
        let name = format!("clients of {}", called(partner));
        let look_up = async |client| self.clients(client, partner).await;
        let Some(found) = chain.step(&name, client, look_up).await else {
            return false;
        };
        for (tenant, n) in found.activated.into_iter().zip(1..) {
            if n <= CLIENTS_TRIED {
                self.search(chain, client, tenant, asked).await;
            } else {
                asked.tenants.push(AskedTenant {
                    tenant,
                    tells: true,
                });
            }
        }
        found.are_all
    }

    /// Takes the step of a tenant: asks for the first search that runs for it.
    async fn search<'a>(
        &'a self,
        chain: &mut Chain<'_, '_>,
        client: Option<&Client>,
        tenant: Tenant,
        asked: &mut Asked<'a>,
    ) {
        let name = format!("tenant {}", called(&tenant));
        let search = self.searches.iter().find(|it| it.is_for(&tenant.id));
        let ask = async |client| match search {
            Some(search) => self.ask(client, &tenant, search).await,
            None => {
                let passed = Passed::new((), "nothing is asked");
                Ok(passed.with_concern("no search of the configuration names this tenant"))
            }
        };
        // The status of the step's own request decides, if it makes one.
        self.seen.0.lock().last_status = None;
        let has_answered = chain.step(&name, client, ask).await.is_some();
        // A refusal of the query says nothing of the tenant.
        let is_query_refused = self.seen.0.lock().last_status == Some(400);
        let tells = has_answered || is_query_refused;
        let searches = if tells {
            &mut asked.searches
        } else {
            &mut asked.in_vain
        };
        searches.extend(search);
        asked.tenants.push(AskedTenant { tenant, tells });
    }

    /// Takes a step for each search whose query no tenant was asked for: asks one tenant for it.
    async fn other_searches<'a>(
        &'a self,
        chain: &mut Chain<'_, '_>,
        client: Option<&Client>,
        asked: &mut Asked<'a>,
    ) {
        for search in self.searches {
            let is_alike =
                |it: &&SearchOptions| it.query == search.query && it.page_size == search.page_size;
            if asked.searches.iter().any(is_alike) {
                continue;
            }
            let of_search = |it: &&AskedTenant| search.is_for(&it.tenant.id);
            let mut tenants = asked.tenants.iter().filter(of_search);
            // The failure of a tenant is reported in that tenant's step already.
            let was_in_vain = asked.in_vain.iter().any(is_alike);
            let first = tenants.clone().next().filter(|_| !was_in_vain);
            let Some(AskedTenant { tenant, tells }) = tenants.find(|it| it.tells).or(first) else {
                continue;
            };
            let of_tenant = format!("tenant {}", called(tenant));
            let name = format!("{of_tenant}, search {}", search.name);
            if client.is_some() && !tells {
                chain.skipped(&name, &of_tenant);
            } else {
                let ask = async |client| self.ask(client, tenant, search).await;
                chain.step(&name, client, ask).await;
            }
            asked.searches.push(search);
        }
    }

    async fn ask(&self, client: &Client, tenant: &Tenant, search: &SearchOptions) -> Outcome<()> {
        let trouble = |error: Error| self.search_trouble(&error, tenant, search);
        let request = SearchRequest {
            query: search.query.clone(),
            page: 1,
            page_size: search.page_size,
            sorted: true,
        };
        let asked = client.search_first(&tenant.id, request, Urgency::Poll);
        let (answer, request) = asked.await.map_err(trouble)?;
        let page = answer.first_page(false).map_err(trouble)?;
        let size = match page.page_size {
            Some(size) if size != u64::from(request.page_size) => {
                format!("{size} a page of the {} asked for", request.page_size)
            }
            _ => format!("{} a page", request.page_size),
        };
        let left = match self.seen.0.lock().rate_limits.get(&*tenant.id) {
            Some(seen) => format!(
                "{} of {} requests a minute left",
                seen.remaining, seen.limit
            ),
            None => "no rate limit told".to_owned(),
        };
        let total = page.total_results;
        let match_it = if total == 1 {
            "alert matches"
        } else {
            "alerts match"
        };
        let found = format!("{total} {match_it} {}, {size}, {left}", search.query);
        let passed = Passed::new((), found);
        let mut concerns = Vec::new();
        if request.page_size != search.page_size {
            concerns.push(format!(
                "the server refuses page_size {}, so that {} are asked for",
                search.page_size, request.page_size
            ));
        }
        if !request.sorted {
            concerns.push(
                "the server refuses to sort, so that polls may read more than the first page"
                    .to_owned(),
            );
        }
        if page.unreadable > 0 {
            concerns.push(format!(
                "{} of the page's alerts cannot be read",
                page.unreadable
            ));
        }
        Ok(passed.with_concerns(&concerns))
    }

    fn search_trouble(&self, error: &Error, tenant: &Tenant, search: &SearchOptions) -> Trouble {
        let Error::Http { status: 400, .. } = error else {
            return self.tenant_trouble(error, tenant, "search");
        };
        let next = format!(
            "look at the query ({}) of the search {}: key:value pairs that OpsRamp knows, joined by +",
            search.query, search.name
        );
        Trouble::new(error.chain(), next)
    }

    fn tenant_trouble(&self, error: &Error, tenant: &Tenant, what: &str) -> Trouble {
        let known = self.seen.0.lock();
        let id = &tenant.id;
        let mut next = match (error, known.last_status) {
            (Error::Auth { .. }, Some(403)) => format!(
                "give the integration a role that may view {} of {id}",
                if what == "clients" {
                    "clients"
                } else {
                    "alerts"
                }
            ),
            (Error::Auth { .. }, _) => format!(
                "look whether url and token_url are of the same OpsRamp instance, and whether \
                 the key is good for {id}"
            ),
            (Error::Http { .. }, Some(404)) => format!(
                "look whether there is a tenant {id} (the console shows it with the \
                 integration's key), whether the key is good for it{}, and whether url is that \
                 of the API",
                if what == "clients" {
                    ", whether it is a partner"
                } else {
                    ""
                }
            ),
            (
                Error::Http {
                    status: 300..=399, ..
                },
                _,
            ) => REDIRECTED.to_owned(),
            (Error::Http { .. }, Some(410)) => format!(
                "the tenant {id} is deactivated; activate it, or take it out of the configuration"
            ),
            (Error::Decode { .. }, _) => {
                "something else than the API answers, such as a login page; correct url".to_owned()
            }
            (Error::TooLarge { .. }, _) => {
                "lower the search's page_size, or raise the account's max_response_size".to_owned()
            }
            (other, _) => self.common_advice(other),
        };
        let ahead = known.ahead.filter(|ahead| ahead.abs() > SKEW);
        if matches!(error, Error::Auth { .. }) && ahead.is_some() {
            next.push_str("; and set the clock, which is wrong");
        }
        Trouble::new(error.chain(), next)
    }
}

impl Observer for Seen {
    fn request(&self, _: opsramp::Endpoint, status: Option<u16>, _: Duration) {
        let mut known = self.0.lock();
        known.answered |= status.is_some();
        known.last_status = status;
    }

    fn token_requested(&self) {}

    fn token_obtained(&self, _: Duration, _: opsramp::Expiry) {}

    fn token_failed(&self, _: &'static str, _: &Error) {}

    fn rate_limit(&self, tenant: &str, seen: RateLimit) {
        self.0.lock().rate_limits.insert(tenant.to_owned(), seen);
    }

    fn throttled(&self, _: &str, _: Duration) {}

    fn server_time(&self, server: Timestamp, now: Timestamp) {
        self.0.lock().ahead = Some(server.duration_since(now));
    }
}
