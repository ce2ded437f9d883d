//! The progress of a long read: a bar on one line of standard error, which is wiped in the end.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use tokio::time::Instant;

use crate::{cli::Output, logging::write, opsramp::Page, plain::plain};

/// Characters of the bar between its brackets.
const WIDTH: u64 = 20;

/// Maximum width of a name, in columns. The whole line stays below 80 columns, because a line that
/// wraps cannot be wiped.
const MAX_NAME: usize = 16;

/// The progress bar. It is only for people: if standard error is no terminal, nothing is written.
pub(super) struct Progress {
    wanted: bool,
    shown: bool,
    /// When the tenant's first request was sent.
    begun: Instant,
    /// Alerts of the tenant that were read so far.
    read: u64,
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(output: Output) -> Self {
        // If the results go to the same terminal, they are progress enough.
        let results_pass_by = output != Output::Table && io::stdout().is_terminal();
        let is_dumb = std::env::var_os("TERM").is_none_or(|terminal| terminal == "dumb");
        Self {
            wanted: io::stderr().is_terminal() && !results_pass_by && !is_dumb,
            shown: false,
            begun: Instant::now(),
            read: 0,
        }
    }

    /// Begins the next tenant.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
        self.read = 0;
    }

    /// Notes that a page was read. A read of a single page shows no bar.
    pub(super) fn show(&mut self, tenant: &str, page: &Page<'_>) {
        self.read += page.raw.len() as u64;
        if self.wanted && page.next_page.is_some() {
            let line = line(tenant, self.read, page.total_results, self.begun.elapsed());
            write(&format!("\r\x1b[K{line}"));
            self.shown = true;
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.shown {
            write("\r\x1b[K");
        }
    }
}

fn line(tenant: &str, read: u64, total: u64, elapsed: Duration) -> String {
    let name = shown_name(&plain(tenant));
    // More alerts may be read than the total, because alerts open meanwhile.
    let total = total.max(read).max(1);
    let full = (read * WIDTH / total) as usize;
    let bar = "#".repeat(full) + &"-".repeat(WIDTH as usize - full);
    let mut line = format!("{name} [{bar}] {read} of {total}");
    if read > 0 {
        let left = elapsed.as_secs_f64() / read as f64 * (total - read) as f64;
        // This is an estimate: when the allowance is used up, the read rests for up to a minute.
        match left as u64 {
            0 => {}
            seconds @ 1..100 => line.push_str(&format!(", about {seconds} s left")),
            seconds => line.push_str(&format!(", about {} min left", seconds.div_ceil(60))),
        }
    }
    line
}

/// Shortens a name to at most [`MAX_NAME`] columns.
fn shown_name(name: &str) -> String {
    // The width of characters depends on the terminal; these values are upper bounds.
    let columns = |c: char| if c.is_ascii() { 1 } else { 2 };
    if name.chars().map(columns).sum::<usize>() <= MAX_NAME {
        return name.to_owned();
    }
    let mut width = 0;
    let fits = |c: &char| {
        width += columns(*c);
        width < MAX_NAME
    };
    let mut cut: String = name.chars().take_while(fits).collect();
    cut.push('…');
    cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bar_tells_how_far_it_is_and_how_long_it_takes() {
        let seconds = Duration::from_secs;
        assert_eq!(
            line("retail", 250, 1_000, seconds(10)),
            "retail [#####---------------] 250 of 1000, about 30 s left"
        );
        assert_eq!(
            line("retail", 1_000, 100_000, seconds(5)),
            "retail [--------------------] 1000 of 100000, about 9 min left"
        );
        assert_eq!(
            line("re\x1btail", 7, 5, seconds(5)),
            "re tail [####################] 7 of 7"
        );
        assert_eq!(
            line("retail", 0, 0, seconds(0)),
            "retail [--------------------] 0 of 1"
        );
    }

    #[test]
    fn it_does_not_wrap() {
        let days = Duration::from_secs(1_000_000);
        let line = line(&"tenant".repeat(9), 900_000, 1_000_000, days);
        assert!(line.starts_with("tenanttenantten… ["), "{line}");
        assert!(line.ends_with(", about 1852 min left"), "{line}");
        assert!(line.chars().count() < 80, "{line}");
    }

    #[test]
    fn a_name_in_wide_characters_is_cut_where_it_would_be_too_wide() {
        for (name, shown) in [
            ("sixteen--columns", "sixteen--columns"),
            ("seventeen-columns", "seventeen-colum…"),
            ("東京支社東京支社", "東京支社東京支社"),
            ("東京支社東京支社東", "東京支社東京支…"),
            ("a東京支社東京支社", "a東京支社東京支…"),
        ] {
            assert_eq!(shown_name(name), shown);
        }
    }
}
