//! What this process knows of the journals of the searches that it holds: what waits for which
//! sink, and how far each sink has come. No I/O.
//!
//! On the server each search has a journal of its own. Positions in it are given under the lock on
//! the search's row, so that they become visible in order. Here the events of all searches are put
//! in one line, in the order in which this process learned of them:
//! [`Pending::position`](crate::store::Pending) is a place in that line. The line is kept as
//! ranges, since a commit's events follow one another.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use jiff::Timestamp;

use crate::store::{Held, Past};

/// Some events of one search that follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Range {
    /// The place of the first event in this process's line.
    pub(super) place: i64,
    /// The search.
    pub(super) row: i64,
    /// The position of the first event in the search's journal.
    pub(super) first: i64,
    /// Number of events.
    pub(super) count: i64,
    /// Whether the events were there when the search was taken up. If so, a former holder, for
    /// instance an earlier process in this one's place, may have delivered them without saying so.
    pub(super) inherited: bool,
    /// When the first event was journalled, once the server was asked.
    pub(super) at: Option<Timestamp>,
}

/// The events that wait for a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Waiting {
    /// Number of events.
    pub(super) events: u64,
    /// When the oldest of the events whose times are known was journalled.
    pub(super) oldest: Option<Timestamp>,
    /// Events that may be older but whose times are not known, by search and position.
    pub(super) undated: Vec<(i64, i64)>,
}

/// What this process knows of the journals.
#[derive(Debug, Default)]
pub(super) struct Journal {
    /// Maximum number of events that may wait for a sink.
    limit: u64,
    /// The last place that was given.
    end: i64,
    /// Number of events that are being committed.
    reserved: u64,
    /// Grows whenever waiting events are forgotten, and whenever the number of waiting events
    /// becomes known again or unknown.
    dropped: u64,
    /// What the server last said of each search's journal. It is kept when a lease ends.
    ends: HashMap<i64, KnownEnd>,
    sinks: BTreeMap<Box<str>, Sink>,
}

/// How far a sink has come in the journal of a search, as the server has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub(super) sink: String,
    pub(super) row: i64,
    pub(super) position: i64,
}

/// What the server last said of a search's journal.
#[derive(Clone, Copy, Debug)]
struct KnownEnd {
    /// The epoch of the lease under which the server said so.
    epoch: i64,
    /// The last position that was given.
    end: i64,
}

/// What waits for a sink, and how far the sink has come.
#[derive(Debug, Default)]
struct Sink {
    /// Whether the sink is this process's. For sinks of others, events are counted only, because
    /// they take up room.
    own: bool,
    queue: VecDeque<Range>,
    waiting: u64,
    /// Searches that were lost while some of their events waited. Nobody has said since who holds
    /// them, so their events may wait still, up to this position at most.
    unclear: HashMap<i64, i64>,
    /// The last place that was acknowledged.
    place: i64,
    /// The events that are being delivered. They are kept when their search is lost.
    lent: Vec<Range>,
    /// The number of the last loan.
    loan: u64,
    /// Searches that were lost and taken up again since some of their events were lent.
    taken_again: Vec<i64>,
    /// How far the sink has come in each search's journal, as far as this process knows. It is
    /// kept when a lease ends: what this process has delivered, it does not deliver again, even if
    /// the server never heard of the delivery.
    delivered: HashMap<i64, i64>,
    /// The positions that the server has not heard of yet, by search.
    unsaved: HashMap<i64, i64>,
    /// Grows when deliveries are forgotten of which the server has not heard.
    losses: u64,
    mark: Option<Vec<u8>>,
    mark_unsaved: bool,
}

/// What the server is to be told of a sink.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Unsaved {
    /// How far the sink has come, by search.
    pub(super) positions: Vec<(i64, i64)>,
    /// What the sink needs to find its place again, if that has changed.
    pub(super) mark: Option<Option<Vec<u8>>>,
}

/// Returns the places of some events, in order.
pub(super) fn places(ranges: &[Range]) -> impl DoubleEndedIterator<Item = i64> {
    let of = |range: &Range| range.place..range.place + range.count;
    ranges.iter().flat_map(of)
}

// === impl Journal ===

impl Journal {
    /// Returns a journal without sinks, whose places begin behind `start`.
    pub(super) fn new(limit: u64, start: i64) -> Self {
        Self {
            limit,
            end: start,
            ..Self::default()
        }
    }

    pub(super) fn limit(&self) -> u64 {
        self.limit
    }

    /// Returns the last place that was given.
    pub(super) fn end(&self) -> i64 {
        self.end
    }

    /// Sets which sinks there are: this process's `own` and those of others. For a sink that is
    /// [new](Self::is_new) here, events wait that are journalled behind its `positions` in the
    /// searches that are held, because another replica may have named the sink a while ago.
    pub(super) fn set_sinks(&mut self, own: &[String], all: &[String], positions: &[Position]) {
        self.sinks
            .retain(|name, _| all.iter().any(|known| **known == **name));
        for name in all {
            if self.is_new(name, own) {
                self.place_sink(name, positions);
            }
        }
        self.set_own_sinks(own);
    }

    /// Whether a sink's positions have to be read before it is taken note of: it is unknown here,
    /// or becomes one of this process's `own`. Since it was that last, it may have been given up
    /// and entered anew, without this process hearing of it.
    pub(super) fn is_new(&self, sink: &str, own: &[String]) -> bool {
        let becomes_own = |known: &Sink| !known.own && own.iter().any(|own| **own == *sink);
        self.sinks.get(sink).is_none_or(becomes_own)
    }

    /// Sets which sinks are this process's.
    pub(super) fn set_own_sinks(&mut self, own: &[String]) {
        for (name, sink) in &mut self.sinks {
            sink.own = own.iter().any(|own| **own == **name);
        }
    }

    /// Lets a sink go on behind its `positions`, whatever waited for it here before.
    fn place_sink(&mut self, name: &str, positions: &[Position]) {
        let place = self.end;
        let sink = self.sinks.entry(name.into()).or_insert_with(|| Sink {
            place,
            ..Sink::default()
        });
        if !sink.queue.is_empty() {
            sink.queue.clear();
            sink.waiting = 0;
            self.dropped += 1;
        }
        for position in positions.iter().filter(|it| it.sink == name) {
            let Some(known) = self.ends.get(&position.row) else {
                continue;
            };
            let delivered = sink.resume(position.row, position.position);
            let count = (known.end - delivered).max(0);
            sink.push(Range {
                place: self.end + 1,
                row: position.row,
                first: delivered + 1,
                count,
                inherited: true,
                at: None,
            });
            self.end += count;
        }
    }

    pub(super) fn knows(&self, sink: &str) -> bool {
        self.sinks.contains_key(sink)
    }

    /// Sets a sink's mark as the server has it.
    pub(super) fn set_mark(&mut self, sink: &str, mark: Option<Vec<u8>>) {
        // A mark that the server was not told of is newer, for instance that of a sink that has
        // left and is back.
        let sink = self.sinks.get_mut(sink);
        if let Some(sink) = sink.filter(|sink| !sink.mark_unsaved) {
            sink.mark = mark;
        }
    }

    pub(super) fn mark(&self, sink: &str) -> Option<Vec<u8>> {
        self.sinks.get(sink)?.mark.clone()
    }

    /// Returns this process's sinks.
    pub(super) fn own_sinks(&self) -> Vec<Box<str>> {
        let own = self.sinks.iter().filter(|(_, sink)| sink.own);
        own.map(|(name, _)| name.clone()).collect()
    }

    pub(super) fn is_own(&self, sink: &str) -> bool {
        self.sinks.get(sink).is_some_and(|sink| sink.own)
    }

    /// Whether events are kept. Without a sink, nobody would ever read or remove them.
    pub(super) fn keeps_events(&self) -> bool {
        !self.sinks.is_empty()
    }

    /// Reserves room for so many events, until they are appended or [taken back](Self::unreserve).
    /// Returns whether there is room.
    pub(super) fn reserve(&mut self, events: u64) -> bool {
        let fits = self.has_room(events);
        if fits {
            self.reserved += events;
        }
        fits
    }

    /// Whether there is room for so many events.
    pub(super) fn has_room(&self, events: u64) -> bool {
        let waiting = self.sinks.values().map(|sink| sink.waiting).max();
        let needed = waiting.unwrap_or(0) + self.reserved + events;
        self.sinks.is_empty() || needed <= self.limit
    }

    /// Returns the sink for which the most events wait.
    pub(super) fn fullest_sink(&self) -> Box<str> {
        let fullest = self.sinks.iter().max_by_key(|(_, sink)| sink.waiting);
        fullest.map(|(name, _)| name.clone()).unwrap_or_default()
    }

    /// Returns the sinks of others for which events wait here, each with their number.
    pub(super) fn waiting_for_others(&self) -> impl Iterator<Item = (&str, u64)> {
        let others = self.sinks.iter().filter(|(_, sink)| !sink.own);
        others
            .map(|(name, sink)| (&**name, sink.waiting))
            .filter(|(_, events)| *events > 0)
    }

    /// Returns the sinks of others, or of nobody any more, that leave no room for so many events.
    /// Returns none if a sink of this process leaves no room either.
    pub(super) fn in_the_way_of(&self, events: u64) -> Vec<String> {
        let leaves_none = |sink: &Sink| sink.waiting + self.reserved + events > self.limit;
        let in_the_way = self.sinks.iter().filter(|(_, sink)| leaves_none(sink));
        let names = in_the_way.map(|(name, sink)| (!sink.own).then(|| name.to_string()));
        names.collect::<Option<_>>().unwrap_or_default()
    }

    pub(super) fn unreserve(&mut self, events: u64) {
        self.reserved = self.reserved.saturating_sub(events);
    }

    /// Appends events that were committed at positions from `first` on. Returns whether these
    /// follow what this process knows. If they do not, the server was set back: what is remembered
    /// of the search is forgotten, and the search has to be taken up anew.
    pub(super) fn append(&mut self, row: i64, first: i64, count: i64) -> bool {
        match self.ends.get_mut(&row) {
            Some(known) if known.end + 1 == first => known.end += count,
            _ => {
                self.ends.remove(&row);
                self.forget(row);
                return false;
            }
        }
        let range = Range {
            place: self.end + 1,
            row,
            first,
            count,
            inherited: false,
            at: None,
        };
        self.end += count;
        for sink in self.sinks.values_mut() {
            sink.push(range);
        }
        true
    }

    /// Takes in what waits in the journal of a search that was taken up after the lease `last`:
    /// for each sink the events behind its `progress`, up to and with `end`. Returns whether the
    /// server still knows all that it once said. It may have been restored from a copy, or
    /// replaced by a server that lagged behind.
    pub(super) fn adopt(
        &mut self,
        held: Held,
        last: i64,
        end: i64,
        progress: &[(String, i64)],
    ) -> bool {
        let row = held.row;
        let now = KnownEnd {
            epoch: held.epoch,
            end,
        };
        let before = self.ends.insert(row, now);
        let knows_all = before.is_none_or(|before| before.end <= end);
        // Positions keep their meaning only if no other replica can have given any meanwhile.
        if !knows_all || before.is_none_or(|before| before.epoch != last) {
            self.forget(row);
        }
        self.drop_search(row);
        self.resolve_unclear(|_, unclear| unclear == row);
        let mut starts = Vec::with_capacity(self.sinks.len());
        for (name, sink) in &mut self.sinks {
            let saved = progress
                .iter()
                .find(|(known, _)| **known == **name)
                // The sink appeared since, and begins with the next event.
                .map_or(end, |(_, position)| *position);
            starts.push(sink.resume(row, saved).min(end));
        }
        let Some(start) = starts.iter().min().copied() else {
            return knows_all;
        };
        let before = self.end;
        self.end += end - start;
        for (sink, from) in self.sinks.values_mut().zip(starts) {
            sink.push(Range {
                place: before + 1 + (from - start),
                row,
                first: from + 1,
                count: end - from,
                inherited: true,
                at: None,
            });
        }
        knows_all
    }

    /// Forgets what was delivered of a search, because its positions may stand for other events
    /// now.
    fn forget(&mut self, row: i64) {
        for sink in self.sinks.values_mut() {
            sink.delivered.remove(&row);
            let lent = sink.lent.len();
            sink.lent.retain(|range| range.row != row);
            if sink.unsaved.remove(&row).is_some() || sink.lent.len() < lent {
                sink.losses += 1;
            }
        }
    }

    /// Forgets what is remembered of all searches but those that are kept.
    pub(super) fn forget_unless(&mut self, is_kept: impl Fn(i64) -> bool) {
        let rows: Vec<i64> = self.ends.keys().copied().collect();
        for row in rows.into_iter().filter(|row| !is_kept(*row)) {
            self.ends.remove(&row);
            self.forget(row);
        }
    }

    /// Forgets what waits in the journal of a search that is lost, without anybody being known to
    /// hold it. Perhaps nobody does, as in an outage of the server: then its events wait still,
    /// and how many is unclear. The same applies to a search that is about to be given back, until
    /// the server has heard of that.
    pub(super) fn lose_search(&mut self, row: i64) {
        for sink in self.sinks.values_mut() {
            if let Some(end) = sink.end_of(row) {
                sink.doubt(row, end);
            }
        }
        self.drop_search(row);
    }

    /// Takes note that events of a search that is not held may have been committed, up to and with
    /// `end`. They may wait for every sink.
    pub(super) fn doubt(&mut self, row: i64, end: i64) {
        for sink in self.sinks.values_mut() {
            sink.doubt(row, end);
        }
        self.dropped += 1;
    }

    /// Whether more may wait for a sink than this process knows of.
    pub(super) fn is_unclear(&self, sink: &str) -> bool {
        let sink = self.sinks.get(sink);
        sink.is_some_and(|sink| !sink.unclear.is_empty())
    }

    /// Returns the lost searches of which nobody has said since who holds them.
    pub(super) fn unclear(&self) -> HashSet<i64> {
        let unclear = self.sinks.values().flat_map(|sink| sink.unclear.keys());
        unclear.copied().collect()
    }

    /// Takes note of searches whose holders are known now, or in which nothing waits for a sink.
    pub(super) fn resolve_unclear(&mut self, is_resolved: impl Fn(&str, i64) -> bool) {
        for (name, sink) in &mut self.sinks {
            let unclear = sink.unclear.len();
            sink.unclear.retain(|row, _| !is_resolved(name, *row));
            self.dropped += u64::from(sink.unclear.len() < unclear);
        }
    }

    /// Forgets what waits in the journal of a search that is no longer held.
    pub(super) fn drop_search(&mut self, row: i64) {
        for sink in self.sinks.values_mut() {
            sink.queue.retain(|range| {
                let keep = range.row != row;
                if !keep {
                    sink.waiting -= range.count.unsigned_abs();
                    self.dropped += 1;
                }
                keep
            });
        }
    }

    /// Returns a number that changes whenever fewer events wait without having been acknowledged,
    /// and whenever the number of waiting events becomes known again or unknown.
    pub(super) fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Whether events of a search wait for one of this process's sinks.
    pub(super) fn waits(&self, row: i64) -> bool {
        let mut own = self.sinks.values().filter(|sink| sink.own);
        own.any(|sink| sink.queue.iter().any(|range| range.row == row))
    }

    /// Whether events of a search are being delivered.
    pub(super) fn is_lent(&self, row: i64) -> bool {
        let mut lent = self.sinks.values().flat_map(|sink| &sink.lent);
        lent.any(|range| range.row == row)
    }

    /// Returns the next events for a sink, at most `max`.
    pub(super) fn next(&self, sink: &str, max: usize) -> Vec<Range> {
        let mut left = i64::try_from(max).unwrap_or(i64::MAX);
        let mut ranges = Vec::new();
        let queue = self.sinks.get(sink).into_iter().flat_map(|it| &it.queue);
        for range in queue {
            if left == 0 {
                break;
            }
            let count = range.count.min(left);
            left -= count;
            ranges.push(Range { count, ..*range });
        }
        ranges
    }

    /// Returns what is known of a sink's earlier deliveries when it is given some events.
    pub(super) fn past(&self, sink: &str, ranges: &[Range]) -> Past {
        let sink = self.sinks.get(sink);
        Past {
            is_inherited: ranges.iter().any(|range| range.inherited),
            acks_stored: sink.is_none_or(|sink| sink.unsaved.is_empty()),
            losses: sink.map_or(0, |sink| sink.losses),
        }
    }

    /// Takes note that a sink is delivering some events. Returns the number of the loan.
    pub(super) fn lend(&mut self, sink: &str, ranges: Vec<Range>) -> u64 {
        let Some(sink) = self.sinks.get_mut(sink) else {
            return 0;
        };
        sink.lent = ranges;
        sink.taken_again.clear();
        sink.loan += 1;
        sink.loan
    }

    /// Takes note that the events of a loan are no longer being delivered.
    pub(super) fn give_back(&mut self, sink: &str, loan: u64) {
        if let Some(sink) = self.sinks.get_mut(sink)
            && sink.loan == loan
        {
            sink.lent.clear();
            sink.taken_again.clear();
        }
    }

    /// Moves a sink on to `place`. An earlier place than before changes nothing. A place beyond
    /// the end counts as the end, since nothing beyond it can have been delivered.
    pub(super) fn acknowledge(&mut self, sink: &str, place: i64, mark: Option<Vec<u8>>) {
        let place = place.min(self.end);
        let Some(sink) = self.sinks.get_mut(sink) else {
            return;
        };
        if place < sink.place {
            return;
        }
        sink.place = place;
        sink.mark_unsaved |= sink.mark != mark;
        sink.mark = mark;
        let unclear = sink.unclear.len();
        // Events of searches that were lost in the meantime count, too.
        for index in 0..sink.lent.len() {
            let range = sink.lent[index];
            sink.note_delivered(range, place);
        }
        for row in std::mem::take(&mut sink.taken_again) {
            sink.skip_delivered(row);
        }
        while let Some(range) = sink.queue.front().copied() {
            let count = (place - range.place + 1).clamp(0, range.count);
            if count == 0 {
                break;
            }
            sink.note_delivered(range, place);
            sink.waiting -= count.unsigned_abs();
            sink.queue.pop_front();
            if count < range.count {
                sink.queue.push_front(Range {
                    place: range.place + count,
                    first: range.first + count,
                    count: range.count - count,
                    at: None,
                    ..range
                });
            }
        }
        self.dropped += u64::from(sink.unclear.len() < unclear);
    }

    /// Moves a sink on to `place`, past events that are missing.
    pub(super) fn skip(&mut self, sink: &str, place: i64) {
        let mark = self.mark(sink);
        self.acknowledge(sink, place, mark);
        self.dropped += 1;
    }

    /// Returns how much waits for a sink of this process. Events that this process has journalled
    /// wait in the order of their times, so the first is the oldest of them. Events that were
    /// taken over may be of any age.
    pub(super) fn backlog(&self, sink: &str) -> Option<Waiting> {
        let sink = self.sinks.get(sink).filter(|sink| sink.own)?;
        let mut waiting = Waiting {
            events: sink.waiting,
            ..Waiting::default()
        };
        let mut is_first = true;
        for range in &sink.queue {
            if !range.inherited && !std::mem::take(&mut is_first) {
                continue;
            }
            match range.at {
                Some(at) => waiting.oldest = Some(waiting.oldest.map_or(at, |it| it.min(at))),
                None => waiting.undated.push((range.row, range.first)),
            }
        }
        Some(waiting)
    }

    /// Takes note of the times at which events were journalled.
    pub(super) fn date(&mut self, sink: &str, times: &HashMap<(i64, i64), Timestamp>) {
        let queue = self.sinks.get_mut(sink).map(|sink| &mut sink.queue);
        for range in queue.into_iter().flatten().filter(|it| it.at.is_none()) {
            range.at = times.get(&(range.row, range.first)).copied();
        }
    }

    /// Returns what must be sent to the server about a sink, for the searches that are `held`. For
    /// all other searches it is forgotten, because their holders send it.
    pub(super) fn unsaved(&mut self, sink: &str, held: impl Fn(i64) -> bool) -> Unsaved {
        let Some(sink) = self.sinks.get_mut(sink) else {
            return Unsaved::default();
        };
        let known = sink.unsaved.len();
        sink.unsaved.retain(|row, _| held(*row));
        sink.losses += u64::from(sink.unsaved.len() < known);
        let positions = sink.unsaved.iter().map(|(row, position)| (*row, *position));
        Unsaved {
            positions: positions.collect(),
            mark: sink.mark_unsaved.then(|| sink.mark.clone()),
        }
    }

    /// Returns the searches of which the server has not heard yet how far a sink has come.
    pub(super) fn untold(&self, sink: &str) -> impl Iterator<Item = i64> {
        let sink = self.sinks.get(sink).into_iter();
        sink.flat_map(|sink| sink.unsaved.keys().copied())
    }

    /// Whether the server has not heard yet of a sink's mark.
    pub(super) fn is_mark_untold(&self, sink: &str) -> bool {
        self.sinks.get(sink).is_some_and(|sink| sink.mark_unsaved)
    }

    /// Takes note of what the server was told.
    pub(super) fn saved(&mut self, sink: &str, saved: &Unsaved) {
        let Some(sink) = self.sinks.get_mut(sink) else {
            return;
        };
        for (row, position) in &saved.positions {
            if sink.unsaved.get(row) == Some(position) {
                sink.unsaved.remove(row);
            }
        }
        if saved.mark.as_ref() == Some(&sink.mark) {
            sink.mark_unsaved = false;
        }
    }
}

// === impl Sink ===

impl Sink {
    fn push(&mut self, range: Range) {
        if range.count == 0 {
            return;
        }
        self.waiting += range.count.unsigned_abs();
        if let Some(last) = self.queue.back_mut()
            && last.row == range.row
            && last.inherited == range.inherited
            && last.first + last.count == range.first
            && last.place + last.count == range.place
        {
            last.count += range.count;
        } else {
            self.queue.push_back(range);
        }
    }

    /// Takes note that the server has the sink at the position `saved` in a search's journal.
    /// Returns where the sink goes on: what this process has delivered counts, even if the server
    /// never heard of it.
    fn resume(&mut self, row: i64, saved: i64) -> i64 {
        let delivered = self.delivered.get(&row).copied().unwrap_or(0);
        if delivered > saved {
            self.unsaved.insert(row, delivered);
        } else {
            self.unsaved.remove(&row);
            self.delivered.insert(row, saved);
        }
        if self.lent.iter().any(|range| range.row == row) {
            self.taken_again.push(row);
        }
        saved.max(delivered)
    }

    /// Removes waiting events that were delivered before they were put in line again.
    fn skip_delivered(&mut self, row: i64) {
        let delivered = self.delivered.get(&row).copied().unwrap_or(0);
        for range in self.queue.iter_mut().filter(|range| range.row == row) {
            let count = (delivered - range.first + 1).clamp(0, range.count);
            range.place += count;
            range.first += count;
            range.count -= count;
            range.at = range.at.filter(|_| count == 0);
            self.waiting -= count.unsigned_abs();
        }
        self.queue.retain(|range| range.count > 0);
    }

    /// Takes note that a range was delivered as far as `place`.
    fn note_delivered(&mut self, range: Range, place: i64) {
        let count = (place - range.place + 1).clamp(0, range.count);
        let position = range.first + count - 1;
        let delivered = self.delivered.entry(range.row).or_default();
        if count > 0 && *delivered < position {
            *delivered = position;
            self.unsaved.insert(range.row, position);
            // If these were all events in doubt, nothing of the search waits for the sink any
            // more, whoever holds it.
            self.unclear
                .retain(|row, end| *row != range.row || *end > position);
        }
    }

    /// Returns the last position of a search that waits.
    fn end_of(&self, row: i64) -> Option<i64> {
        let of_it = self.queue.iter().filter(|range| range.row == row);
        of_it.map(|range| range.first + range.count - 1).max()
    }

    /// Takes note that events of a search may wait, up to and with `end`, and that nobody says
    /// whether they do.
    fn doubt(&mut self, row: i64, end: i64) {
        let known = self.unclear.entry(row).or_insert(end);
        *known = end.max(*known);
    }
}

#[cfg(test)]
mod tests;
