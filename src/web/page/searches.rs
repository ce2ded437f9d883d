//! The searches, one card for each.

use std::{cmp::Reverse, fmt};

use jiff::Timestamp;

use super::{
    Page, fact, severity,
    show::{Span, Text, Thousands, When},
};
use crate::{
    track::OTHER,
    web::view::{ErrorView, GroupView, PollView, SearchState, SearchView},
};

impl Page<'_> {
    pub(super) fn searches(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, total) = (self.status.searches.len(), self.status.searches_total);
        f.write_str("<section class=\"searches\">\n<h2 id=\"searches\">Searches <small>")?;
        if shown < total {
            write!(f, "{shown} of {total}, those in trouble first")?;
        } else {
            write!(f, "{total}")?;
        }
        f.write_str("</small></h2>\n")?;
        if total == 0 {
            return f.write_str("<p class=\"muted\">No search matches.</p>\n</section>\n");
        }
        f.write_str("<div class=\"cards\">\n")?;
        for search in &self.status.searches {
            self.search(f, search)?;
        }
        f.write_str("</div>\n</section>\n")
    }

    fn search(&self, f: &mut fmt::Formatter<'_>, search: &SearchView) -> fmt::Result {
        let now = self.status.now;
        let (class, word) = match search.state {
            SearchState::Up => ("good", "up"),
            SearchState::Failing => ("critical", "failing"),
            SearchState::Stale => ("critical", "stale"),
            SearchState::Pending => ("info", "first poll pending"),
            SearchState::Elsewhere => ("", "not polled by this replica"),
        };
        write!(
            f,
            "<article class=\"card\">\n<div class=\"top\"><div><h3>{} / {}</h3>\
             <div class=\"where\">account {}</div></div>\
             <span class=\"badge {class}\">{word}</span></div>\n<div class=\"total\">",
            Text(&search.tenant),
            Text(&search.search),
            Text(&search.account),
        )?;
        match search.total_results {
            Some(total) => write!(
                f,
                "<strong>{}</strong> <span class=\"muted\">open</span>",
                Thousands(total)
            )?,
            None => f.write_str("<strong>–</strong> <span class=\"muted\">not known</span>")?,
        }
        if let (Some(false), Some(tracked)) = (search.complete, search.tracked) {
            write!(f, " <small>{} tracked so far</small>", Thousands(tracked))?;
        }
        f.write_str("</div>\n")?;
        self.groups(f, &search.open_alerts)?;

        f.write_str("<dl>\n")?;
        for (name, at) in [
            ("oldest alert", search.oldest_open_alert_at),
            ("last success", search.last_success_at),
            ("last full read", search.last_full_read_at),
            ("next poll", search.next_poll_at),
        ] {
            if let Some(at) = at {
                fact(f, name, When { at, now })?;
            }
        }
        fact(
            f,
            "polled",
            format_args!("every {}", Span(search.interval_seconds)),
        )?;
        f.write_str("</dl>\n")?;

        if let Some(error) = &search.last_error {
            let class = match search.state {
                SearchState::Failing | SearchState::Stale => "critical",
                _ => "muted",
            };
            last_error(f, error, class, now)?;
        }
        self.polls(f, &search.polls)?;
        f.write_str("</article>\n")
    }

    fn groups(&self, f: &mut fmt::Formatter<'_>, groups: &[GroupView]) -> fmt::Result {
        let mut groups: Vec<_> = groups.iter().filter(|group| group.count > 0).collect();
        if groups.is_empty() {
            return Ok(());
        }
        groups.sort_by_key(|group| (severity_of(group).0, Reverse(group.count)));
        shares(f, &groups)?;
        f.write_str("<div class=\"groups\">")?;
        const SHOWN: usize = 12;
        for group in groups.iter().take(SHOWN) {
            let class = severity_of(group).1;
            write!(
                f,
                "<span class=\"badge {class}\">{} ",
                Thousands(group.count)
            )?;
            // What is counted under "other" has that value for each label.
            let is_overflow = group.values.iter().all(|value| **value == *OTHER);
            let shown = if is_overflow { 1 } else { group.values.len() };
            for (place, value) in group.values.iter().take(shown).enumerate() {
                let dot = if place == 0 { "" } else { " · " };
                write!(f, "{dot}{}", Text(value))?;
            }
            f.write_str("</span> ")?;
        }
        if groups.len() > SHOWN {
            write!(f, "<small>and {} more groups</small>", groups.len() - SHOWN)?;
        }
        f.write_str("</div>\n")
    }

    fn polls(&self, f: &mut fmt::Formatter<'_>, polls: &[PollView]) -> fmt::Result {
        if polls.is_empty() {
            return Ok(());
        }
        f.write_str("<details><summary>last polls <span class=\"bars\">")?;
        let longest = polls
            .iter()
            .map(|poll| poll.took_seconds)
            .fold(0.001, f64::max);
        for poll in polls.iter().rev() {
            let class = if poll.error.is_some() {
                " class=\"failed\""
            } else {
                ""
            };
            // The height is a percentage of the longest poll, so that a slow poll stands out.
            write!(
                f,
                "<i{class} style=\"height:{:.0}%\"></i>",
                (poll.took_seconds / longest * 100.0).clamp(15.0, 100.0)
            )?;
        }
        f.write_str(
            "</span></summary>\n<table><thead><tr><th>began</th><th class=\"number\">took</th>\
             <th class=\"number\">requests</th><th>outcome</th></tr></thead><tbody>\n",
        )?;
        let now = self.status.now;
        for poll in polls {
            let at = poll.started_at;
            write!(
                f,
                "<tr><td>{}</td><td class=\"number\">{}</td><td class=\"number\">{}</td><td>",
                When { at, now },
                Span(poll.took_seconds),
                poll.requests,
            )?;
            match (&poll.error, poll.events) {
                (Some(error), _) => write!(
                    f,
                    "<span class=\"badge critical\">{}</span>",
                    Text(error.reason)
                )?,
                (None, Some(0)) => f.write_str("nothing new")?,
                (None, Some(1)) => f.write_str("1 event")?,
                (None, events) => write!(f, "{} events", Thousands(events.unwrap_or_default()))?,
            }
            f.write_str("</td></tr>\n")?;
        }
        f.write_str("</tbody></table></details>\n")
    }
}

/// Returns the rank and the CSS class of the state that the alerts of a group share.
fn severity_of(group: &GroupView) -> (u8, &'static str) {
    let state = group.labels.get("state");
    state.map_or((9, ""), |state| severity(state))
}

/// Writes one bar that shows how the alerts divide by severity. The words are below the bar.
fn shares(f: &mut fmt::Formatter<'_>, groups: &[&GroupView]) -> fmt::Result {
    f.write_str("<div class=\"shares\" aria-hidden=\"true\">")?;
    // The groups come in the order of their severity.
    for alike in groups.chunk_by(|one, next| severity_of(one) == severity_of(next)) {
        let count: u64 = alike.iter().map(|group| group.count).sum();
        let class = severity_of(alike[0]).1;
        write!(f, "<i class=\"{class}\" style=\"flex-grow:{count}\"></i>")?;
    }
    f.write_str("</div>\n")
}

fn last_error(
    f: &mut fmt::Formatter<'_>,
    error: &ErrorView,
    class: &str,
    now: Timestamp,
) -> fmt::Result {
    writeln!(
        f,
        "<div class=\"error {class}\">last error, {}: <strong>{}</strong>, {}</div>",
        When { at: error.at, now },
        Text(error.reason),
        Text(&error.message),
    )
}
