//! The report for the operator: one line a step, written when the step ends, and what to do about
//! each failed step.
//!
//! This module knows how lines look, and nothing of what is checked.

use std::io;

use crate::plain::plain;

/// How a step ended.
pub(super) type Outcome<T> = Result<Passed<T>, Trouble>;

/// A step that passed.
#[derive(Debug)]
pub(super) struct Passed<T> {
    /// The value that later steps need.
    pub(super) value: T,
    /// What was found, with its figures.
    pub(super) found: String,
    /// A warning: something that works but should be changed.
    pub(super) concern: Option<String>,
}

/// A step that failed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    /// Why the step failed; several causes are on a line each.
    pub(super) cause: String,
    /// What to try next.
    pub(super) next: String,
}

/// The report while it is written.
pub(super) struct Report<'a> {
    out: &'a mut dyn io::Write,
    passed: usize,
    failed: usize,
    skipped: usize,
    lost: Option<io::Error>,
}

/// Steps about one thing; the name of each begins with it.
pub(super) struct Chain<'a, 'out> {
    report: &'a mut Report<'out>,
    about: String,
    /// The last step that failed.
    failed: Option<String>,
}

// === impl Passed ===

impl<T> Passed<T> {
    pub(super) fn new(value: T, found: impl Into<String>) -> Self {
        Self {
            value,
            found: found.into(),
            concern: None,
        }
    }

    pub(super) fn with_concern(mut self, concern: impl Into<String>) -> Self {
        self.concern = Some(concern.into());
        self
    }

    pub(super) fn with_concerns(self, concerns: &[String]) -> Self {
        if concerns.is_empty() {
            self
        } else {
            self.with_concern(concerns.join("; "))
        }
    }
}

// === impl Trouble ===

impl Trouble {
    pub(super) fn new(cause: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            cause: cause.into(),
            next: next.into(),
        }
    }
}

// === impl Report ===

impl<'out> Report<'out> {
    pub(super) fn new(out: &'out mut dyn io::Write) -> Self {
        Self {
            out,
            passed: 0,
            failed: 0,
            skipped: 0,
            lost: None,
        }
    }

    /// Begins the steps about something, such as `account acme`.
    pub(super) fn about(&mut self, about: impl Into<String>) -> Chain<'_, 'out> {
        Chain {
            report: self,
            about: about.into(),
            failed: None,
        }
    }

    /// Writes the totals. Returns whether every step passed.
    pub(super) fn end(mut self) -> io::Result<bool> {
        let all = self.passed + self.failed + self.skipped;
        let steps = |n: usize| if n == 1 { "step" } else { "steps" };
        let sum = if self.passed == all {
            format!("all {all} {} passed", steps(all))
        } else {
            format!(
                "{} of {all} {} failed, {} skipped",
                self.failed,
                steps(all),
                self.skipped
            )
        };
        self.line(&sum);
        match self.lost {
            // A reader that has closed the pipe early still gets the exit status.
            Some(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
            _ => Ok(self.passed == all),
        }
    }

    /// Reports a step that was taken already.
    pub(super) fn taken<T>(&mut self, step: &str, outcome: Outcome<T>) -> Option<T> {
        match outcome {
            Ok(Passed {
                value,
                found,
                concern,
            }) => {
                self.passed += 1;
                self.line(&format!("ok       {step}: {found}"));
                if let Some(concern) = concern {
                    self.line(&format!("         warning: {concern}"));
                }
                Some(value)
            }
            Err(Trouble { cause, next }) => {
                self.failed += 1;
                let mut causes = cause.lines();
                let first = causes.next().unwrap_or_default();
                self.line(&format!("FAILED   {step}: {first}"));
                for more in causes {
                    self.line(&format!("         {}", more.trim_start()));
                }
                self.line(&format!("         next: {next}"));
                None
            }
        }
    }

    /// Writes a line and flushes it, because a step should be seen when it ends, not when all have
    /// ended.
    fn line(&mut self, text: &str) {
        if self.lost.is_some() {
            return;
        }
        let written = self
            .out
            .write_all(format!("{}\n", plain(text)).as_bytes())
            .and_then(|()| self.out.flush());
        self.lost = written.err();
    }
}

// === impl Chain ===

impl Chain<'_, '_> {
    /// Takes a step that needs the value of another one. Without that value the step is skipped.
    pub(super) async fn step<I, T>(
        &mut self,
        name: &str,
        needed: Option<I>,
        work: impl AsyncFnOnce(I) -> Outcome<T>,
    ) -> Option<T> {
        let Some(needed) = needed else {
            let failed = self.failed.clone();
            self.skipped(name, failed.as_deref().unwrap_or("a step before it"));
            return None;
        };
        let outcome = work(needed).await;
        self.taken(name, outcome)
    }

    /// Reports a step that is skipped because an earlier one has failed.
    pub(super) fn skipped(&mut self, name: &str, failed: &str) {
        self.report.skipped += 1;
        let line = format!("skipped  {}{name}: needs {failed}", self.about);
        self.report.line(&line);
    }

    /// Reports a step that was taken already.
    pub(super) fn taken<T>(&mut self, name: &str, outcome: Outcome<T>) -> Option<T> {
        if outcome.is_err() {
            self.failed = Some(name.to_owned());
        }
        self.report.taken(&format!("{}{name}", self.about), outcome)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_step_is_a_line_and_what_cannot_be_tried_is_skipped() {
        let mut out = Vec::new();
        let mut report = Report::new(&mut out);
        let mut chain = report.about("account a, ");
        let one = chain
            .step("one", Some(()), async |()| Ok(Passed::new(7, "7 found")))
            .await;
        let two = chain
            .step("two", one, async |n| {
                Err::<Passed<()>, _>(Trouble::new(format!("not {n}\u{202e}\u{1b}[31m"), "try 8"))
            })
            .await;
        chain
            .step("three", two, async |()| Ok(Passed::new((), "")))
            .await;
        chain.taken("four", Ok(Passed::new((), "fine").with_concern("hm")));
        assert!(!report.end().unwrap());
        insta::assert_snapshot!(String::from_utf8(out).unwrap(), @r"
        ok       account a, one: 7 found
        FAILED   account a, two: not 7  [31m
                 next: try 8
        skipped  account a, three: needs two
        ok       account a, four: fine
                 warning: hm
        1 of 4 steps failed, 1 skipped
        ");
    }

    #[test]
    fn a_reader_that_has_seen_enough_still_gets_the_verdict() {
        struct Closed;

        impl io::Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }

        let mut out = Closed;
        let mut report = Report::new(&mut out);
        report.taken("one", Ok(Passed::new((), "fine")));
        assert!(report.end().unwrap());
    }
}
