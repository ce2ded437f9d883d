//! An OpenTelemetry receiver: OTLP over HTTP, protobuf.
//!
//! Events go in requests of a bounded size. A request that is refused is split until the bad event
//! is found, and only that event is given up. Whatever may be a fault of the set-up (a wrong
//! password, a wrong URL, a redirect, a login page) is tried again for ever, and shows in the
//! backlog. Delivery is at least once; `log.record.uid` is the same each time. The sink does not
//! know its caller. Only a request whose connection broke is repeated at once, and that once.

use std::time::Duration;

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use tokio::time::Instant;

use crate::{record::Record, store::Pending};

use super::{
    OtlpOptions,
    sink::{Progress, Refusal},
};

pub(crate) use self::exchange::Error;
use self::{answer::Outcome, exchange::Receiver};

mod answer;
mod exchange;
mod message;

/// The most events that a request may hold.
const MAX_EVENTS: usize = 512;

/// Number of answers to full requests after which requests may hold twice as many events. It is
/// that large because a receiver that cannot take more may store a request that it does not
/// answer, and is then sent the same events again.
const ANSWERS_TO_RAISE: u32 = 16;

/// The size of a request before compression, in bytes, unless a single event is larger. Receivers
/// are known to refuse more than 4 MiB.
const MAX_BYTES: usize = 1 << 20;

/// Time after which the settled events are returned, so that they are acknowledged before more is
/// sent.
const TIME_SLICE: Duration = Duration::from_secs(3);

const PROTOBUF: &str = "application/x-protobuf";

/// An OTLP receiver as a sink.
#[derive(Debug)]
pub(super) struct Otlp {
    receiver: Receiver,
    limit: Limit,
    time_slice: Duration,
}

/// How many events a request may hold at present. The number falls while the receiver does not
/// answer in time or refuses requests as too large: otherwise what is too much for it would be sent
/// again and again.
#[derive(Debug)]
struct Limit {
    events: usize,
    /// Answers to requests that held this many events, since the number last changed.
    full_answers: u32,
    /// Whether a connection has broken since the last answer that settled or split a request.
    has_broken: bool,
}

/// The record of an event, or the refusal of an event that cannot be read.
type Parsed = Result<Record<'static>, Refusal>;

// === impl Otlp ===

impl Otlp {
    pub(super) fn new(options: &OtlpOptions) -> Result<Self, Error> {
        Ok(Self {
            receiver: Receiver::new(options)?,
            limit: Limit::default(),
            time_slice: TIME_SLICE,
        })
    }

    /// Delivers events in order: all of them, or those that a slow receiver settles within a few
    /// seconds. No further request is sent once this sink may not `go_on`.
    pub(super) async fn deliver(
        &mut self,
        events: &[Pending],
        go_on: impl Fn() -> bool,
    ) -> Progress {
        let until = Instant::now() + self.time_slice;
        let mut progress = Progress::default();
        while progress.settled < events.len() && go_on() {
            let batch = read_batch(&events[progress.settled..], self.limit.events);
            let delivered = self.deliver_batch(&batch, until, &go_on, &mut progress);
            if let Err(error) = delivered.await {
                progress.error = Some(error.into());
                break;
            }
            if Instant::now() >= until {
                break;
            }
        }
        progress
    }

    /// Delivers one request's worth of events, in parts if the receiver refuses it. After `until`,
    /// it ends with the first part that is settled. It ends before the next part once it may not
    /// `go_on`.
    async fn deliver_batch(
        &mut self,
        batch: &[Parsed],
        until: Instant,
        go_on: &impl Fn() -> bool,
        progress: &mut Progress,
    ) -> Result<(), Error> {
        // Parts of the batch that are still to be sent, the first one last.
        let mut parts = vec![batch];
        while go_on()
            && let Some(part) = parts.pop()
        {
            let records = part.iter().flatten();
            if records.clone().next().is_none() {
                progress.settle(part, None);
                continue;
            }
            let request = message::request(records.clone());
            let exported = self.receiver.export(request).await;
            match &exported {
                Ok(_) => self.limit.has_broken = false,
                Err(error) if error.is_broken_connection() && !self.limit.has_broken => {
                    // The receiver may just have closed a connection that was kept, or some other
                    // chance has cut it: that says nothing about the size.
                    self.limit.has_broken = true;
                    if Instant::now() < until {
                        parts.push(part);
                        continue;
                    }
                }
                Err(error) if error.is_for_want_of_time() => self.limit.halve(part.len()),
                Err(_) => {}
            }
            let refused = match (exported?, part) {
                (Outcome::Taken { rejected, message }, _) => {
                    self.limit.raise(part.len());
                    let events = rejected.min(records.count() as u64);
                    let refused = (events > 0).then(|| Refusal {
                        events,
                        event_id: None,
                        reason: format!(
                            "the receiver took a batch without some of its events{}",
                            said(&message)
                        ),
                    });
                    if refused.is_none() && !message.is_empty() {
                        progress.warnings.push(message);
                    }
                    refused
                }
                (Outcome::Refused { why }, [Ok(record)]) => Some(Refusal::of(record.event_id, why)),
                // With `Retry-After`, the receiver says that this is too large only for now (RFC
                // 9110, 15.5.14).
                (Outcome::TooLarge(error), [Ok(_)])
                    if error.retry_after() > Some(Duration::ZERO) =>
                {
                    return Err(error);
                }
                // The event would be too large for ever, and everything behind it would wait.
                (Outcome::TooLarge(error), [Ok(record)]) => {
                    let why = too_large(&error, message::size(record));
                    Some(Refusal::of(record.event_id, why))
                }
                (refused, _) => {
                    // Smaller parts may be too large because of a single event, which says nothing
                    // about the next request.
                    if matches!(refused, Outcome::TooLarge(_)) && part.len() == batch.len() {
                        self.limit.halve(part.len());
                    }
                    let (front, back) = part.split_at(part.len() / 2);
                    parts.extend([back, front]);
                    continue;
                }
            };
            progress.settle(part, refused);
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }
}

/// Sends a request without any record, which a receiver takes like one with records. Returns why
/// the receiver refused it, if it did. A refusal is no failure of the sink, because some receivers
/// want at least one record.
pub(crate) async fn probe(options: &OtlpOptions) -> Result<Option<String>, Error> {
    let request = ExportLogsServiceRequest::default();
    match Receiver::new(options)?.export(request).await? {
        Outcome::Taken { .. } => Ok(None),
        Outcome::Refused { why } => Ok(Some(why)),
        Outcome::TooLarge(error) => Err(error),
    }
}

// === impl Limit ===

impl Limit {
    /// Called when a request with `events` events was too large, or seems to have been too much for
    /// the time.
    fn halve(&mut self, events: usize) {
        self.events = (events / 2).max(1);
        self.full_answers = 0;
    }

    /// Called when a request with `events` events was answered.
    fn raise(&mut self, events: usize) {
        if events < self.events {
            return;
        }
        self.full_answers += 1;
        if self.full_answers >= ANSWERS_TO_RAISE {
            self.events = (self.events * 2).min(MAX_EVENTS);
            self.full_answers = 0;
        }
    }
}

impl Default for Limit {
    fn default() -> Self {
        Self {
            events: MAX_EVENTS,
            full_answers: 0,
            has_broken: false,
        }
    }
}

impl Progress {
    /// Adds a part that is settled, with what the receiver refused of it. It follows the parts
    /// that were settled before.
    fn settle(&mut self, part: &[Parsed], refused: Option<Refusal>) {
        self.settled += part.len();
        self.refused.extend(refused);
        let unreadable = part.iter().filter_map(|record| record.as_ref().err());
        self.refused.extend(unreadable.cloned());
    }
}

/// Reads the records of one request: as many from the front as it may hold, but at least one.
fn read_batch(events: &[Pending], limit: usize) -> Vec<Parsed> {
    let mut records = Vec::with_capacity(events.len().min(limit));
    let mut bytes = 0;
    for Pending { event, .. } in events.iter().take(limit) {
        let record = Record::from_json(&event.body)
            .map_err(|error| Refusal::unreadable(event.event_id, &error));
        bytes += record.as_ref().map_or(0, message::size);
        if bytes > MAX_BYTES && !records.is_empty() {
            break;
        }
        records.push(record);
    }
    records
}

fn too_large(error: &Error, bytes: usize) -> String {
    format!(
        "{error}; the event alone takes {bytes} bytes before compression: raise the limit of the receiver, or of \
         what stands before it, or shorten lines (log.include_raw: false, log.max_description_length)"
    )
}

fn said(excerpt: &str) -> String {
    if excerpt.is_empty() {
        String::new()
    } else {
        format!(": {excerpt}")
    }
}

#[cfg(test)]
mod tests;
