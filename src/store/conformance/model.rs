//! Random histories, run against a store and against a model of it that fits on a page.

use std::collections::{BTreeMap, BTreeSet};

use proptest::{
    collection::vec,
    prelude::*,
    sample::subsequence,
    test_runner::{Config, TestRunner},
};

use super::*;

const LIMIT: u64 = 12;
const SINKS: [&str; 3] = ["file", "loki", "stdout"];
const IDS: [&str; 5] = ["1", "2", "3", "4", "ü"];

#[derive(Clone, Debug)]
enum Step {
    TakeUp {
        search: usize,
    },
    Commit {
        search: usize,
        stale: bool,
        learned: Learned,
    },
    SetSinks {
        names: Vec<&'static str>,
    },
    Read {
        sink: usize,
        max_events: usize,
        max_bytes: usize,
    },
    Acknowledge {
        sink: usize,
        nth: usize,
        mark: Option<u8>,
    },
    Reopen,
}

#[derive(Clone, Debug)]
struct Learned {
    upserts: Vec<(usize, u32, Option<i64>)>,
    departures: Vec<(usize, u32)>,
    events: usize,
    primed: bool,
}

/// What a store is expected to know.
#[derive(Debug, Default)]
struct Model {
    searches: BTreeMap<usize, Search>,
    sinks: BTreeMap<&'static str, Sink>,
    /// The search of each event, by the event's number.
    events: BTreeMap<u128, usize>,
}

#[derive(Debug, Default)]
struct Search {
    primed: bool,
    alerts: BTreeMap<Box<str>, StoredAlert>,
    departed: BTreeMap<Box<str>, u32>,
}

#[derive(Debug, Default)]
struct Sink {
    /// The numbers of the events that wait for it.
    waiting: Vec<u128>,
    /// The position that was acknowledged last.
    position: i64,
    mark: Option<Vec<u8>>,
    /// Whether the sink is no longer named. It is kept for a while, and given up if it alone is in
    /// the way.
    has_left: bool,
}

/// The store, and what its callers remember of its answers.
struct Run {
    store: Store,
    holds: BTreeMap<usize, Held>,
    stale: Vec<Held>,
    /// The last batch that each sink read.
    batches: BTreeMap<&'static str, Batch>,
    events: u128,
}

pub(in crate::store) fn a_random_history_leaves_what_the_model_says<K>(
    fresh: impl Fn() -> (Options, K),
) {
    let config = Config {
        cases: 96,
        failure_persistence: None,
        ..Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    TestRunner::new(config)
        .run(&vec(step(), 1..60), |steps| {
            let (options, _keep) = fresh();
            runtime.block_on(history(&with_limit(&options, LIMIT), steps));
            Ok(())
        })
        .unwrap();
}

fn step() -> impl Strategy<Value = Step> {
    let search = 0..3_usize;
    let sink = 0..SINKS.len();
    let learned = (
        vec((0..IDS.len(), any::<u32>(), any::<Option<i32>>()), 0..4),
        vec((0..IDS.len(), any::<u32>()), 0..3),
        0..6_usize,
        any::<bool>(),
    )
        .prop_map(|(upserts, departures, events, primed)| Learned {
            upserts: upserts
                .into_iter()
                .map(|(id, ordinal, at)| (id, ordinal, at.map(i64::from)))
                .collect(),
            departures,
            events,
            primed,
        });
    prop_oneof![
        2 => search.clone().prop_map(|search| Step::TakeUp { search }),
        8 => (search, prop::bool::weighted(0.1), learned)
            .prop_map(|(search, stale, learned)| Step::Commit { search, stale, learned }),
        2 => subsequence(SINKS.to_vec(), 0..=SINKS.len())
            .prop_map(|names| Step::SetSinks { names }),
        6 => (sink.clone(), 0..5_usize, prop_oneof![Just(usize::MAX), 0..40_usize])
            .prop_map(|(sink, max_events, max_bytes)| Step::Read { sink, max_events, max_bytes }),
        6 => (sink, 0..5_usize, any::<Option<u8>>())
            .prop_map(|(sink, nth, mark)| Step::Acknowledge { sink, nth, mark }),
        1 => Just(Step::Reopen),
    ]
}

async fn history(options: &Options, steps: Vec<Step>) {
    let mut model = Model::default();
    let mut run = Run {
        store: open(options).await,
        holds: BTreeMap::new(),
        stale: Vec::new(),
        batches: BTreeMap::new(),
        events: 0,
    };
    for step in steps {
        match step {
            Step::TakeUp { search } => {
                run.take_up(&mut model, search).await;
                run.learn_order(&mut model).await;
            }
            Step::Commit {
                search,
                stale,
                learned,
            } => {
                run.commit(&mut model, search, stale, learned).await;
            }
            Step::SetSinks { names } => run.set_sinks(&mut model, &names).await,
            Step::Read {
                sink,
                max_events,
                max_bytes,
            } => {
                run.read(&model, SINKS[sink], max_events, max_bytes).await;
            }
            Step::Acknowledge { sink, nth, mark } => {
                run.acknowledge(&mut model, SINKS[sink], nth, mark).await;
            }
            Step::Reopen => {
                run.check(&mut model).await;
                run.store.close().await;
                run.store = open(options).await;
                run.open_again(&mut model).await;
            }
        }
    }
    run.check(&mut model).await;
    run.store.close().await;
}

// === impl Model ===

impl Model {
    /// Whether `events` more events find no room. Sinks that have left are given up first if they
    /// alone are in the way.
    fn is_full_with(&mut self, events: usize) -> bool {
        let leaves_none = |sink: &Sink| (sink.waiting.len() + events) as u64 > LIMIT;
        let is_full = events > 0 && self.named().any(|(_, sink)| leaves_none(sink));
        if events > 0 && !is_full {
            self.sinks.retain(|_, sink| !leaves_none(sink));
        }
        is_full
    }

    fn named(&self) -> impl Iterator<Item = (&'static str, &Sink)> {
        let sinks = self.sinks.iter().map(|(name, sink)| (*name, sink));
        sinks.filter(|(_, sink)| !sink.has_left)
    }
}

// === impl Run ===

impl Run {
    /// Opens the store again. The holds and batches of the store before are void.
    async fn open_again(&mut self, model: &mut Model) {
        self.holds.clear();
        self.stale.clear();
        self.batches.clear();
        let names: Vec<_> = model.named().map(|(name, _)| name).collect();
        for sink in model.sinks.values_mut() {
            sink.position = 0;
        }
        self.set_sinks(model, &names).await;
        let known: Vec<_> = model.searches.keys().copied().collect();
        for search in known {
            self.take_up(model, search).await;
        }
        self.learn_order(model).await;
    }

    async fn take_up(&mut self, model: &mut Model, search: usize) {
        let key = key("acme", "client_1", &search.to_string());
        let loaded = self.store.take_up(&key, second(7)).await.unwrap();
        let known = model.searches.entry(search).or_default();
        assert_eq!(loaded.primed, known.primed);
        assert_eq!(loaded.first_seen, second(7));
        assert_eq!(loaded.has_departed, !known.departed.is_empty());
        let alerts: BTreeMap<_, _> = loaded
            .alerts
            .into_iter()
            .map(|alert| (alert.id.clone(), alert))
            .collect();
        assert_eq!(alerts, known.alerts);
        let ids = IDS.map(Box::from).to_vec();
        let departed = self.store.departed(loaded.held, ids).await.unwrap();
        assert_eq!(BTreeMap::from_iter(departed), known.departed);
        if let Some(earlier) = self.holds.insert(search, loaded.held) {
            self.stale.push(earlier);
        }
    }

    /// Learns anew in which order the events wait. The events of a search that is taken up may
    /// come behind those of other searches. The events of one search stay in order.
    async fn learn_order(&mut self, model: &mut Model) {
        self.batches.clear();
        let named = model.sinks.iter_mut().filter(|(_, sink)| !sink.has_left);
        for (name, sink) in named {
            let batch = self.store.pending(name, usize::MAX, usize::MAX).await;
            let found = numbers(&batch.unwrap());
            let mut searches: BTreeMap<usize, Vec<u128>> = BTreeMap::new();
            for number in &found {
                let search = model.events[number];
                searches.entry(search).or_default().push(*number);
            }
            for numbers in searches.values() {
                assert!(numbers.is_sorted(), "{found:?}");
            }
            let sets = [&found, &sink.waiting].map(|it| it.iter().collect::<BTreeSet<_>>());
            assert_eq!(sets[0], sets[1]);
            sink.waiting = found;
        }
    }

    async fn commit(&mut self, model: &mut Model, search: usize, stale: bool, learned: Learned) {
        let held = if stale {
            self.stale.last().copied()
        } else {
            self.holds.get(&search).copied()
        };
        let Some(held) = held else { return };
        let numbers: Vec<u128> = (0..learned.events)
            .map(|_| {
                self.events += 1;
                self.events
            })
            .collect();
        let upserts = learned
            .upserts
            .into_iter()
            .map(|(id, ordinal, created)| StoredAlert {
                created_at: created.map(second),
                ..alert(IDS[id], ordinal, 0)
            });
        let departures = learned.departures.into_iter();
        let commit = Commit {
            upserts: upserts.collect(),
            departures: departures
                .map(|(id, ordinal)| (IDS[id].into(), ordinal))
                .collect(),
            events: numbers.iter().copied().map(event).collect(),
            primed: learned.primed,
            may_forget: true,
        };
        let outcome = self.store.commit(held, commit.clone(), second(8)).await;
        if stale {
            assert!(matches!(outcome, Err(Error::LeaseLost)), "{outcome:?}");
        } else if model.is_full_with(learned.events) {
            let full = matches!(outcome, Err(Error::JournalFull { limit: LIMIT, .. }));
            assert!(full, "{outcome:?}");
        } else {
            outcome.unwrap();
            let known = model.searches.get_mut(&search).unwrap();
            known.primed |= learned.primed;
            for alert in commit.upserts {
                known.alerts.insert(alert.id.clone(), alert);
            }
            for (id, ordinal) in commit.departures {
                known.alerts.remove(&id);
                known.departed.insert(id, ordinal);
            }
            for sink in model.sinks.values_mut() {
                sink.waiting.extend(&numbers);
            }
            model
                .events
                .extend(numbers.into_iter().map(|it| (it, search)));
        }
    }

    async fn set_sinks(&mut self, model: &mut Model, names: &[&'static str]) {
        let mut is_back = false;
        for (name, sink) in &mut model.sinks {
            let had_left = std::mem::replace(&mut sink.has_left, !names.contains(name));
            is_back |= had_left && !sink.has_left;
        }
        let end = *self.store.journalled().borrow();
        let mut expected = Vec::new();
        for name in names {
            let sink = model.sinks.entry(name).or_insert_with(|| Sink {
                position: end,
                ..Sink::default()
            });
            expected.push(SinkState {
                mark: sink.mark.clone(),
            });
        }
        assert_eq!(sinks(&self.store, names).await, expected);
        if is_back {
            // Searches may have been taken up while the sink was not named.
            self.learn_order(model).await;
        }
    }

    async fn read(
        &mut self,
        model: &Model,
        sink: &'static str,
        max_events: usize,
        max_bytes: usize,
    ) {
        let batch = self.store.pending(sink, max_events, max_bytes).await;
        if model.named().all(|(name, _)| name != sink) {
            assert!(matches!(batch, Err(Error::UnknownSink { .. })), "{batch:?}");
            return;
        }
        let batch = batch.unwrap();
        let mut bytes = 0;
        let mut expected = model.sinks[sink].waiting.clone();
        expected.truncate(max_events);
        let fitting = expected
            .iter()
            .take_while(|number| {
                bytes += event(**number).body.len();
                bytes <= max_bytes
            })
            .count();
        expected.truncate(fitting.max(1));
        assert_eq!(numbers(&batch), expected);
        self.batches.insert(sink, batch);
    }

    async fn acknowledge(
        &mut self,
        model: &mut Model,
        sink: &'static str,
        nth: usize,
        mark: Option<u8>,
    ) {
        let Some(batch) = self.batches.get(sink) else {
            return;
        };
        let Some(pending) = batch.events.get(nth) else {
            return;
        };
        let mark = mark.map(|mark| vec![mark]);
        let outcome = self
            .store
            .acknowledge(sink, pending.position, mark.clone())
            .await;
        let Some(known) = model.sinks.get_mut(sink) else {
            assert!(
                matches!(outcome, Err(Error::UnknownSink { .. })),
                "{outcome:?}"
            );
            return;
        };
        outcome.unwrap();
        if pending.position >= known.position {
            known.position = pending.position;
            known.mark = mark;
            let delivered = batch.events[..=nth].iter();
            let delivered: Vec<_> = delivered.map(|it| it.event.event_id.as_u128()).collect();
            known.waiting.retain(|number| !delivered.contains(number));
        }
    }

    /// Compares all that the store can be asked for.
    async fn check(&mut self, model: &mut Model) {
        let names: Vec<_> = model.named().map(|(name, _)| name).collect();
        self.set_sinks(model, &names).await;
        for sink in names {
            self.read(model, sink, usize::MAX, usize::MAX).await;
            let waiting = &model.sinks[sink].waiting;
            let expected = Backlog {
                events: waiting.len() as u64,
                oldest: waiting.iter().map(|number| event(*number).at).min(),
            };
            assert_eq!(self.store.backlog(sink).await.unwrap(), expected);
        }
        let known: Vec<_> = model.searches.keys().copied().collect();
        for search in known {
            self.take_up(model, search).await;
        }
        let everything = all_alerts(usize::MAX);
        let page = self.store.open_alerts(everything).await.unwrap();
        let ages: Vec<_> = page.iter().map(|open| open.alert.created_at).collect();
        assert!(ages.is_sorted_by(|a, b| a >= b), "{ages:?}");
        let shown: BTreeSet<_> = page
            .into_iter()
            .map(|open| (open.search, open.alert.id))
            .collect();
        let expected: BTreeSet<_> = model
            .searches
            .iter()
            .flat_map(|(search, known)| {
                let ids = known.alerts.keys().cloned();
                ids.map(move |id| (search.to_string(), id))
            })
            .collect();
        assert_eq!(shown, expected);
    }
}
