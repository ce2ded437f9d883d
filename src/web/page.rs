//! The page for people: one HTML document that needs no script.
//!
//! The page is a pure function of the status. Every value goes through [`Text`], which escapes it,
//! because anybody who can raise an alert writes subjects and host names.

use std::fmt;

use jiff::Timestamp;

use super::{
    alerts::{AlertsError, OpenAlert},
    query::Query,
    view::{AccountView, SinkView, StatusView},
};

use show::{Span, Text, Thousands, When, utc};

mod alerts;
mod searches;
mod show;

/// The page's whole style, so that the page loads nothing.
const STYLE: &str = include_str!("page.css");

/// Number of tenants of an account whose allowance is shown at once; the others unfold.
const ALLOWANCES_SHOWN: usize = 8;

/// What the page shows.
#[derive(Debug)]
pub(super) struct Page<'a> {
    pub(super) status: &'a StatusView,
    pub(super) alerts: &'a Result<Vec<OpenAlert<'a>>, &'a AlertsError>,
    pub(super) query: &'a Query,
    pub(super) telemetry_path: &'a str,
}

// === impl Page ===

impl fmt::Display for Page<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>",
        )?;
        let troubles = self.status.troubled + self.failing_accounts() + self.failing_sinks();
        if troubles > 0 {
            write!(f, "({troubles}) ")?;
        }
        write!(
            f,
            "opsramp-exporter</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        )?;
        self.header(f)?;
        f.write_str("<main>\n")?;
        self.searches(f)?;
        // The accounts and sinks stand beside the searches and the alerts if there is room.
        // Otherwise they stand between the two, because there can be many alerts.
        f.write_str("<aside>\n")?;
        self.accounts(f)?;
        self.sinks(f)?;
        f.write_str("</aside>\n")?;
        self.alerts(f)?;
        f.write_str("</main>\n")?;
        self.footer(f)?;
        f.write_str("</body>\n</html>\n")
    }
}

impl Page<'_> {
    fn failing_sinks(&self) -> usize {
        let failing = |sink: &&SinkView| sink.error.is_some();
        self.status.sinks.iter().filter(failing).count()
    }

    fn failing_accounts(&self) -> usize {
        let failing = |account: &&AccountView| account.auth_error.is_some();
        self.status.accounts.iter().filter(failing).count()
    }

    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let status = self.status;
        write!(
            f,
            "<header>\n<h1>opsramp-exporter</h1> <span class=\"muted\">{}</span>\n",
            Text(status.version)
        )?;
        let searches = (
            status.troubled,
            status.searches_total,
            "searches in trouble",
        );
        let accounts = (
            self.failing_accounts(),
            status.accounts.len(),
            "accounts get no new token",
        );
        let sinks = (self.failing_sinks(), status.sinks.len(), "sinks failing");
        for (count, total, what) in [searches, accounts, sinks] {
            if count > 0 {
                writeln!(
                    f,
                    "<span class=\"badge critical\">{count} of {total} {what}</span>"
                )?;
            }
        }
        if searches.0 + accounts.0 + sinks.0 == 0 && status.problems.is_empty() {
            writeln!(f, "<span class=\"badge good\">all well</span>")?;
        }
        write!(
            f,
            "<span class=\"when muted\">as of {} · <a href=\"\">refresh</a></span>\n</header>\n\
             <nav><a href=\"#searches\">searches</a> <a href=\"#accounts\">accounts</a> \
             <a href=\"#sinks\">sinks</a> <a href=\"#alerts\">open alerts</a></nav>\n",
            Text(utc(status.now))
        )?;
        if !status.problems.is_empty() {
            f.write_str("<div class=\"notice warning\" role=\"status\"><ul>\n")?;
            for problem in &status.problems {
                writeln!(f, "<li>{}</li>", Text(problem))?;
            }
            f.write_str("</ul></div>\n")?;
        }
        Ok(())
    }

    fn accounts(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.status.accounts.is_empty() {
            return Ok(());
        }
        f.write_str("<section>\n<h2 id=\"accounts\">Accounts</h2>\n<div class=\"cards\">\n")?;
        for account in &self.status.accounts {
            self.account(f, account)?;
        }
        f.write_str("</div>\n</section>\n")
    }

    fn account(&self, f: &mut fmt::Formatter<'_>, account: &AccountView) -> fmt::Result {
        let now = self.status.now;
        write!(
            f,
            "<article class=\"card\">\n<h3>{}</h3>\n<dl>\n",
            Text(&account.account)
        )?;
        match account.token_expires_at {
            Some(at) if at > now => fact(f, "token", format_args!("expires {}", When { at, now }))?,
            Some(at) => fact(f, "token", format_args!("expired {}", When { at, now }))?,
            None => fact(f, "token", "none")?,
        }
        if let Some(latency) = account.auth_latency_seconds {
            fact(f, "token request took", Span(latency))?;
        }
        f.write_str("</dl>\n")?;
        if let Some(error) = &account.auth_error {
            writeln!(
                f,
                "<div class=\"error critical\">no new token: {}</div>",
                Text(error)
            )?;
        }
        let mut limits: Vec<_> = account.rate_limits.iter().collect();
        limits.sort_by_key(|seen| seen.remaining);
        let (first, others) = limits.split_at(limits.len().min(ALLOWANCES_SHOWN));
        allowances(f, first, now)?;
        if !others.is_empty() {
            let count = others.len();
            writeln!(f, "<details><summary>{count} more tenants</summary>")?;
            allowances(f, others, now)?;
            f.write_str("</details>\n")?;
        }
        f.write_str("</article>\n")
    }

    fn sinks(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.status.sinks.is_empty() {
            return Ok(());
        }
        f.write_str("<section>\n<h2 id=\"sinks\">Sinks</h2>\n<div class=\"cards\">\n")?;
        for sink in &self.status.sinks {
            self.sink(f, sink)?;
        }
        f.write_str("</div>\n</section>\n")
    }

    fn sink(&self, f: &mut fmt::Formatter<'_>, sink: &SinkView) -> fmt::Result {
        let now = self.status.now;
        let (class, word) = match sink.error {
            Some(_) => ("critical", "failing"),
            None => ("good", "works"),
        };
        write!(
            f,
            "<article class=\"card\">\n<div class=\"top\"><div><h3>{}</h3>\
             <div class=\"where\">{}</div></div><span class=\"badge {class}\">{word}</span></div>\n\
             <dl>\n",
            Text(&sink.sink),
            Text(sink.kind),
        )?;
        fact(f, "delivered", Thousands(sink.delivered))?;
        match sink.backlog {
            Some(backlog) => fact(f, "waiting", Thousands(backlog))?,
            None => fact(f, "waiting", "not known")?,
        }
        if let Some(at) = sink.oldest_pending_at {
            fact(f, "oldest waiting", When { at, now })?;
        }
        f.write_str("</dl>\n")?;
        if let Some(error) = &sink.error {
            writeln!(f, "<div class=\"error critical\">{}</div>", Text(error))?;
        }
        f.write_str("</article>\n")
    }

    fn footer(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "<footer>\n<a href=\"{}\">metrics</a>\n<a href=\"/-/healthy\">health</a>\n\
             <a href=\"/-/ready\">readiness</a>\n<a href=\"/api/v1/status\">status as JSON</a>\n\
             <a href=\"/api/v1/alerts\">alerts as JSON</a>\n\
             <span class=\"muted\">version {}, revision {}</span>\n</footer>\n",
            Text(self.telemetry_path),
            Text(self.status.version),
            Text(self.status.revision),
        )
    }
}

/// Writes one line of a card's list.
fn fact(f: &mut fmt::Formatter<'_>, name: &str, value: impl fmt::Display) -> fmt::Result {
    writeln!(f, "<div><dt>{name}</dt><dd>{value}</dd></div>")
}

fn allowances(
    f: &mut fmt::Formatter<'_>,
    limits: &[&super::view::RateLimitView],
    now: Timestamp,
) -> fmt::Result {
    if limits.is_empty() {
        return Ok(());
    }
    f.write_str(
        "<table><thead><tr><th>tenant</th><th>requests left</th><th>renewed</th></tr></thead>\
         <tbody>\n",
    )?;
    for seen in limits {
        let at = seen.reset_at;
        writeln!(
            f,
            "<tr><td>{}</td><td><meter min=\"0\" max=\"{1}\" low=\"{2}\" optimum=\"{1}\" \
             value=\"{3}\"></meter> <span class=\"number\">{3} of {1}</span></td><td>{4}</td></tr>",
            Text(&seen.tenant),
            seen.limit,
            seen.limit / 5,
            seen.remaining,
            When { at, now },
        )?;
    }
    f.write_str("</tbody></table>\n")
}

/// Returns the rank and the CSS class of an alert's state.
fn severity(state: &str) -> (u8, &'static str) {
    match state.to_ascii_lowercase().as_str() {
        "critical" => (0, "critical"),
        "warning" => (1, "warning"),
        "info" => (2, "info"),
        "ok" => (3, "good"),
        _ => (4, ""),
    }
}
