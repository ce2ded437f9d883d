//! The allowance: how many requests a tenant may make in a minute, shared by all callers.
//!
//! It depends on our own ceiling, on the `X-RateLimit-*` headers, and on 429 with `Retry-After`.
//! [`Window`] is the pure rule. [`Allowance`] lets callers wait for it: first come, first served,
//! and polls before full reads. If polls want more requests than there are, it spreads them evenly.

use std::{
    collections::VecDeque,
    pin::pin,
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use parking_lot::Mutex;
use tokio::time::Instant;

pub use self::shared::{Allowances, Reservation};
pub(super) use self::{
    hints::Hints,
    shared::{Share, paginated_ceiling},
};
use crate::http_date::MAX_PAUSE;

mod hints;
mod shared;

/// The length of the documented window.
const MINUTE: Duration = Duration::from_secs(60);
/// The time after which a server's limit lapses if no answer repeats it.
const LIMIT_LASTS: Duration = Duration::from_secs(5 * 60);
/// By how much the reset of the same window may differ between answers, because servers give it in
/// whole seconds.
const JITTER: Duration = Duration::from_secs(2);
/// The number of answers in a row, a while apart, that must show a sliding window before the
/// window is treated as sliding. A few are no proof, because the reset of a leaky bucket moves on
/// as well while the bucket fills.
const SLIDING_AFTER: u32 = 4;
/// The number of answers in a row that must show the contrary before the window is no longer
/// treated as sliding.
const FIXED_AFTER: u32 = 2;
/// The pause after a 429 that names neither `Retry-After` nor a reset.
const DEFAULT_PAUSE: Duration = Duration::from_secs(15);

/// The time after which a waiting caller checks again, because other requests' answers may have
/// changed the allowance meanwhile.
const RECHECK_INTERVAL: Duration = Duration::from_secs(1);

/// How soon a request is needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// The first page of a poll (new alerts wait for it), and all pages of the commands.
    Poll,
    /// A further page of a poll. A quarter of the limit is for them before other polls. Beyond
    /// that, they take turns with the polls of the tenant's other searches.
    FurtherPage,
    /// A full read, or requests that follow from one. They take what polls leave.
    Background,
}

/// The rule: at most `ceiling` requests in any minute, and fewer if the server says so.
#[derive(Debug)]
pub(super) struct Window {
    ceiling: u32,
    /// The server's limit, and the time until which it counts.
    server_limit: Option<(u32, Instant)>,
    /// When the requests of the last minute were answered, and their urgency. The server counts a
    /// request when it arrives, which is before the answer. So a minute after the answer, the
    /// server has surely forgotten the request.
    answered: VecDeque<(Instant, Urgency)>,
    /// The number of requests that are not answered yet, by urgency.
    in_flight: [u32; 3],
    /// How many of the requests in flight got a 429 in a sliding window. The server does not count
    /// those, so they are not added to `answered` when they are given back.
    refused: u32,
    /// The time of the last request of a poll, be it the first page or a further one.
    last_of_polls: Option<Instant>,
    /// The urgency of the last request.
    last_urgency: Option<Urgency>,
    /// How many requests the server said are left, and until when.
    server_balance: Option<Balance>,
    resets: Resets,
    /// No request before this, because the server said so.
    paused_until: Option<Instant>,
}

/// The resets that answers named, and what they show about the server's window.
#[derive(Debug, Default)]
struct Resets {
    /// When an answer came, and the reset that it named. Later resets are compared with this one,
    /// to see whether the reset moves on.
    anchor: Option<(Instant, Instant)>,
    /// Whether the window slides: the server counts the last minute's requests, so the reset moves
    /// on from answer to answer.
    is_sliding: bool,
    /// The number of answers in a row that contradict `is_sliding`.
    contradictions: u32,
}

#[derive(Clone, Copy, Debug)]
struct Balance {
    remaining: u32,
    resets_at: Instant,
    /// Our requests a minute if the window slides: those that are left, and those that we have
    /// used.
    sliding_limit: Option<u32>,
}

/// One allowance, shared by all callers with the same tenant and category of requests.
#[derive(Debug)]
pub(super) struct Allowance {
    window: Mutex<Window>,
    /// The requests a minute that polls are expected to need, in thousandths. Full reads leave
    /// them free.
    reserved: AtomicU32,
    /// The queue of polls and their further pages. Whoever is first in it waits in `next`.
    polls: tokio::sync::Mutex<()>,
    /// The queue of further pages that are within the part for a burst. In it, they wait for one
    /// poll at most. The caller that is next holds the lock.
    next: tokio::sync::Mutex<()>,
    /// The queue of full reads. The caller that is next holds the lock.
    full_reads: tokio::sync::Mutex<()>,
}

/// The right to make one request. It is dropped when the request was answered, or given up.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    allowance: &'a Allowance,
    urgency: Urgency,
}

// === impl Window ===

impl Window {
    pub(super) fn new(ceiling: u32) -> Self {
        Self {
            ceiling,
            server_limit: None,
            answered: VecDeque::new(),
            in_flight: [0; 3],
            refused: 0,
            last_of_polls: None,
            last_urgency: None,
            server_balance: None,
            resets: Resets::default(),
            paused_until: None,
        }
    }

    /// Takes a request out of the allowance, or returns the time at which to try again. `polls` is
    /// the number of requests that polls need in a minute.
    pub(super) fn take(
        &mut self,
        now: Instant,
        urgency: Urgency,
        polls: u32,
    ) -> Result<(), Instant> {
        self.forget(now);
        if let Some(until) = self.paused_until {
            return Err(until);
        }
        let limit = self.limit();
        let used = self.used();
        if used >= limit {
            let frees = self.answered.get((used - limit) as usize);
            return Err(retry_at(frees, now));
        }
        let keep = match urgency {
            Urgency::Poll | Urgency::FurtherPage => 0,
            Urgency::Background => self.kept_by_full_reads(polls, now)?,
        };
        if let Some(balance) = &mut self.server_balance
            && balance.sliding_limit.is_none()
        {
            // The server's count includes what other programs used. The nearer the reset, the
            // fewer requests must be kept.
            let left = balance.resets_at - now;
            let keep_here = (f64::from(keep) * left.as_secs_f64() / MINUTE.as_secs_f64()) as u32;
            if balance.remaining <= keep_here {
                return Err(balance.resets_at);
            }
            balance.remaining -= 1;
        }
        self.in_flight[urgency as usize] += 1;
        self.last_urgency = Some(urgency);
        if urgency != Urgency::Background {
            self.last_of_polls = Some(now);
        }
        Ok(())
    }

    /// Forgets what no longer counts.
    fn forget(&mut self, now: Instant) {
        while self
            .answered
            .front()
            .is_some_and(|(at, _)| now.saturating_duration_since(*at) >= MINUTE)
        {
            self.answered.pop_front();
        }
        self.paused_until = self.paused_until.filter(|until| now < *until);
        self.server_balance = self
            .server_balance
            .filter(|balance| now < balance.resets_at);
        self.server_limit = self.server_limit.filter(|(_, until)| now < *until);
    }

    /// Whether the window knows nothing that counts. No request may be in flight.
    fn is_as_new(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.answered.is_empty()
            && self.paused_until.is_none()
            && self.server_balance.is_none()
            && self.server_limit.is_none()
    }

    /// Returns how many requests full reads must leave in the server's balance. If they have used
    /// up their share of the limit, returns the time at which to try again. `polls` is the number
    /// of requests that polls need in a minute.
    fn kept_by_full_reads(&self, polls: u32, now: Instant) -> Result<u32, Instant> {
        let limit = self.limit();
        // Besides what polls need, a fifth is reserved for the further pages of a burst. However
        // much that is, full reads get a tenth, because they must come to an end.
        let for_burst = limit / 5;
        let guaranteed = self.tenth();
        let used = self.used_for(Urgency::Background);
        if used < guaranteed {
            let both_fit = polls + guaranteed <= limit;
            return Ok(if both_fit { polls } else { 0 });
        }
        // Requests that were made are a part of what is reserved for them.
        let taken = polls.max(self.used_for(Urgency::Poll))
            + for_burst.max(self.used_for(Urgency::FurtherPage));
        let share = limit.saturating_sub(taken).max(guaranteed);
        match used.checked_sub(share) {
            None => Ok(polls + for_burst),
            Some(over) => {
                let frees = self.answered_for(Urgency::Background).nth(over as usize);
                Err(retry_at(frees, now))
            }
        }
    }

    /// Returns the number of requests of this urgency in the last minute, including those in
    /// flight.
    fn used_for(&self, urgency: Urgency) -> u32 {
        count(self.answered_for(urgency).count()) + self.in_flight[urgency as usize]
    }

    fn answered_for(&self, urgency: Urgency) -> impl Iterator<Item = &(Instant, Urgency)> {
        self.answered
            .iter()
            .filter(move |(_, answered)| *answered == urgency)
    }

    /// Checks whether a request of a poll keeps its distance from the one before. If not, returns
    /// the time from which it does. `polls` is the number of polls that are wanted in a minute.
    fn pace(
        &mut self,
        now: Instant,
        urgency: Urgency,
        polls: f64,
        full_reads_wait: bool,
    ) -> Result<(), Instant> {
        if urgency == Urgency::FurtherPage && self.has_room_for_burst(now) {
            return Ok(());
        }
        // Further pages cannot be foreseen. Polls that needed some in the last minute are expected
        // to need as many in the next.
        self.forget(now);
        let further =
            self.used_for(Urgency::FurtherPage) + u32::from(urgency == Urgency::FurtherPage);
        let wanted = polls + f64::from(further);
        let due = self
            .last_of_polls
            .map(|last| last + self.spacing(now, last, wanted, full_reads_wait));
        due.filter(|due| *due > now).map_or(Ok(()), Err)
    }

    /// Whether further pages have not had their quarter of the limit in the last minute. All new
    /// alerts of a burst are on them, while most polls show nothing new.
    fn has_room_for_burst(&mut self, now: Instant) -> bool {
        self.forget(now);
        self.used_for(Urgency::FurtherPage) < self.limit().div_ceil(4)
    }

    /// Whether a request leaves the turn to another that waits. If the limit is a single request a
    /// minute, no part of it can be reserved, so polls and full reads take turns.
    fn leaves_turn(&self, urgency: Urgency, polls_wait: bool, full_reads_wait: bool) -> bool {
        let is_background = |urgency| urgency == Urgency::Background;
        let other_waits = if is_background(urgency) {
            polls_wait
        } else {
            full_reads_wait
        };
        let had_the_last = |last| is_background(last) == is_background(urgency);
        self.limit() == 1 && other_waits && self.last_urgency.is_some_and(had_the_last)
    }

    /// Returns how far from the last one the next request of a poll must be if `wanted` requests a
    /// minute are more than there are; otherwise zero. Polls that are spread evenly find an alert
    /// sooner than a burst that leaves nothing for a while. While full reads wait, their tenth is
    /// not for polls.
    fn spacing(&self, now: Instant, last: Instant, wanted: f64, full_reads_wait: bool) -> Duration {
        let limit = self.limit();
        let available = limit - if full_reads_wait { self.tenth() } else { 0 };
        let mut spacing = Duration::ZERO;
        if wanted > f64::from(available) {
            spacing = MINUTE / available.max(1);
            // What is left lasts until the next request becomes free, also after a burst.
            if let Some((oldest, _)) = self.answered.front() {
                let left = limit.saturating_sub(self.used());
                spacing =
                    spacing.max((*oldest + MINUTE).saturating_duration_since(last) / (left + 1));
            }
        }
        if let Some(balance) = self
            .server_balance
            .filter(|balance| balance.sliding_limit.is_none())
        {
            let left = balance.resets_at.saturating_duration_since(now);
            let needed = wanted * left.as_secs_f64() / MINUTE.as_secs_f64();
            // Polls are not spread while they lack no more than one request.
            if needed > f64::from(balance.remaining) + 1.0 {
                spacing = spacing.max(left / balance.remaining.max(1));
            }
        }
        spacing
    }

    /// Returns the number of requests in the last minute, including those in flight.
    fn used(&self) -> u32 {
        count(self.answered.len()) + self.all_in_flight()
    }

    fn all_in_flight(&self) -> u32 {
        self.in_flight.iter().sum()
    }

    fn tenth(&self) -> u32 {
        self.limit().div_ceil(10)
    }

    /// Returns our requests a minute: the lowest of our ceiling, the server's limit, and what
    /// others leave us in a sliding window; at least one.
    fn limit(&self) -> u32 {
        let limit = self.server_limit.map_or(self.ceiling, |(server_limit, _)| {
            server_limit.min(self.ceiling)
        });
        let sliding_limit = self
            .server_balance
            .and_then(|balance| balance.sliding_limit);
        sliding_limit
            .map_or(limit, |sliding_limit| sliding_limit.min(limit))
            .max(1)
    }

    /// Returns how many requests a minute are ours if the window slides and `remaining` are left.
    /// In a sliding window, requests that we have made become free again a minute later, whatever
    /// its reset is. The request whose answer is being learned from is still in flight, and counts
    /// as well.
    fn sliding_limit(&self, remaining: u32, now: Instant) -> Option<u32> {
        let is_counted =
            |(at, _): &&(Instant, Urgency)| now.saturating_duration_since(*at) < MINUTE;
        let answered = count(self.answered.iter().filter(is_counted).count());
        let used = (answered + 1).saturating_sub(self.refused);
        self.resets
            .is_sliding
            .then(|| remaining.saturating_add(used))
    }

    /// Returns the time until a sliding window forgets one of our requests, but at least the
    /// distance between requests that are spread evenly.
    fn frees_in(&self, now: Instant) -> Duration {
        let mut forgotten = self.answered.iter().map(|(at, _)| *at + MINUTE);
        let next = forgotten.find(|at| *at > now);
        let wait = next.map_or(Duration::ZERO, |at| at - now);
        wait.max(MINUTE / self.limit())
    }

    /// Records that a request was answered, or given up.
    pub(super) fn give_back(&mut self, now: Instant, urgency: Urgency) {
        let in_flight = &mut self.in_flight[urgency as usize];
        *in_flight = in_flight.saturating_sub(1);
        if self.refused > 0 {
            self.refused -= 1;
            return;
        }
        self.answered.push_back((now, urgency));
    }

    /// Learns from the headers of an answer.
    pub(super) fn learn(&mut self, hints: &Hints, now: Instant) {
        if let Some(limit) = hints.limit.filter(|limit| *limit > 0) {
            self.server_limit = Some((limit, now + LIMIT_LASTS));
        }
        let resets_in = hints.resets_in.map(|wait| wait.min(MAX_PAUSE));
        let balance = hints.remaining.zip(resets_in.map(|wait| now + wait));
        if let Some((_, resets_at)) = balance {
            self.resets.watch(resets_at, now);
        }
        // A refusal is counted even if its headers do not say what is left.
        if hints.throttled && self.resets.is_sliding {
            self.refused += 1;
        }
        if let Some((remaining, resets_at)) = balance {
            let sliding_limit = self.sliding_limit(remaining, now);
            let remaining = remaining.saturating_sub(self.all_in_flight().saturating_sub(1));
            // Because answers overtake each other, only the lowest count of a window is true. If
            // the reset has moved on, the answer is about another window, or the window slides.
            let same_window = |known: &Balance| {
                resets_at < known.resets_at + JITTER && known.resets_at < resets_at + MINUTE / 2
            };
            self.server_balance = Some(match self.server_balance {
                Some(known) if same_window(&known) => Balance {
                    remaining: known.remaining.min(remaining),
                    resets_at: known.resets_at.max(resets_at),
                    sliding_limit,
                },
                _ => Balance {
                    remaining,
                    resets_at,
                    sliding_limit,
                },
            });
        }
        if hints.throttled {
            let resets_in = resets_in.map(|wait| {
                if self.resets.is_sliding {
                    wait.min(self.frees_in(now))
                } else {
                    wait
                }
            });
            let wait = hints.retry_after.or(resets_in);
            let until = now + wait.unwrap_or(DEFAULT_PAUSE);
            self.paused_until = Some(self.paused_until.map_or(until, |known| known.max(until)));
        }
    }
}

// === impl Resets ===

impl Resets {
    /// Finds out from a newly named reset whether the window slides. The reset of a fixed window
    /// comes nearer, and the next reset is a whole window later. The reset of a sliding window is
    /// a whole minute away each time.
    fn watch(&mut self, resets_at: Instant, now: Instant) {
        let before = self.anchor.filter(|(_, before)| now + JITTER < *before);
        let Some((anchored_at, before)) = before else {
            self.anchor = Some((now, resets_at));
            return;
        };
        let passed = now.saturating_duration_since(anchored_at);
        if passed < 2 * JITTER {
            return;
        }
        let left = resets_at.saturating_duration_since(now);
        let moved = resets_at.saturating_duration_since(before);
        let slid =
            left.abs_diff(MINUTE) <= 2 * JITTER && moved > JITTER && moved <= passed + JITTER;
        self.contradictions = if slid == self.is_sliding {
            0
        } else {
            self.contradictions + 1
        };
        if self.contradictions >= if slid { SLIDING_AFTER } else { FIXED_AFTER } {
            self.is_sliding = slid;
            self.contradictions = 0;
        }
        // While the window is treated as sliding, later resets are not compared with that of an
        // odd answer.
        if slid || !self.is_sliding {
            self.anchor = Some((now, resets_at));
        }
    }
}

fn count(requests: usize) -> u32 {
    u32::try_from(requests).unwrap_or(u32::MAX)
}

/// Returns the time at which an answered request is forgotten. If there is none, all requests are
/// in flight, and the caller tries again a moment later.
fn retry_at(answered: Option<&(Instant, Urgency)>, now: Instant) -> Instant {
    answered.map_or(now + Duration::from_millis(100), |(at, _)| *at + MINUTE)
}

// === impl Allowance ===

impl Allowance {
    pub(super) fn new(ceiling: u32) -> Self {
        Self {
            window: Mutex::new(Window::new(ceiling)),
            reserved: AtomicU32::new(0),
            polls: tokio::sync::Mutex::default(),
            next: tokio::sync::Mutex::default(),
            full_reads: tokio::sync::Mutex::default(),
        }
    }

    /// Waits until a request is free. `waited` is called with the time that was waited, also
    /// during the wait.
    pub(super) async fn acquire(
        &self,
        urgency: Urgency,
        mut waited: impl FnMut(Duration),
    ) -> Permit<'_> {
        let mut reported_at = Instant::now();
        let (before, queue) = match urgency {
            Urgency::Background => (None, &self.full_reads),
            Urgency::FurtherPage if self.window.lock().has_room_for_burst(reported_at) => {
                (None, &self.next)
            }
            Urgency::Poll | Urgency::FurtherPage => (Some(&self.polls), &self.next),
        };
        let mut report = |now: Instant| {
            let more = now - reported_at;
            if more > Duration::from_millis(1) {
                waited(more);
                reported_at = now;
            }
        };
        let _place = match before {
            Some(queue) => Some(wait_in(queue, &mut report).await),
            None => None,
        };
        let _turn = wait_in(queue, &mut report).await;
        loop {
            let now = Instant::now();
            report(now);
            match self.take(now, urgency) {
                Ok(()) => {
                    return Permit {
                        allowance: self,
                        urgency,
                    };
                }
                Err(at) => tokio::time::sleep_until(at.min(now + RECHECK_INTERVAL)).await,
            }
        }
    }

    fn take(&self, now: Instant, urgency: Urgency) -> Result<(), Instant> {
        let reserved = self.reserved.load(Ordering::Relaxed);
        // A queue is locked if a caller waits in it.
        let polls_wait = self.next.try_lock().is_err();
        let full_reads_wait = self.full_reads.try_lock().is_err();
        let mut window = self.window.lock();
        if window.leaves_turn(urgency, polls_wait, full_reads_wait) {
            return Err(now + RECHECK_INTERVAL);
        }
        if urgency != Urgency::Background {
            let polls = f64::from(reserved) / 1000.0;
            window.pace(now, urgency, polls, full_reads_wait)?;
        }
        window.take(now, urgency, reserved.div_ceil(1000))
    }

    /// Changes the ceiling. Requests that were made before still count.
    fn set_ceiling(&self, ceiling: u32) {
        self.window.lock().ceiling = ceiling;
    }

    fn is_as_new(&self, now: Instant) -> bool {
        self.window.lock().is_as_new(now)
    }

    pub(super) fn learn(&self, hints: &Hints) {
        self.window.lock().learn(hints, Instant::now());
    }

    /// Reserves as many requests a minute as a poll every `interval` needs. Returns their number in
    /// thousandths, to be [released](Self::release) when they are no longer needed.
    fn reserve(&self, interval: Duration) -> u32 {
        let a_minute = MINUTE.as_secs_f64() / interval.as_secs_f64();
        let milli = (a_minute * 1000.0).min(1e6) as u32;
        self.reserved.fetch_add(milli, Ordering::Relaxed);
        milli
    }

    fn release(&self, milli: u32) {
        self.reserved.fetch_sub(milli, Ordering::Relaxed);
    }
}

/// Waits until the caller is next in a queue. `report` is called with the time during the wait.
async fn wait_in<'a>(
    queue: &'a tokio::sync::Mutex<()>,
    report: &mut impl FnMut(Instant),
) -> tokio::sync::MutexGuard<'a, ()> {
    let mut turn = pin!(queue.lock());
    // The same future is polled again after each timeout, so that the caller keeps its place in
    // the queue.
    loop {
        match tokio::time::timeout(RECHECK_INTERVAL, &mut turn).await {
            Ok(turn) => return turn,
            Err(_) => report(Instant::now()),
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.allowance
            .window
            .lock()
            .give_back(Instant::now(), self.urgency);
    }
}

#[cfg(test)]
mod tests;
