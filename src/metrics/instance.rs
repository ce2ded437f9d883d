//! What this instance counts of itself: its build, its configuration, its messages, its sinks and
//! its process.
//!
//! There are few such series, whatever is configured. They live in a `prometheus::Registry` of
//! their own, never in the default one, which belongs to the whole process and would mix the
//! metrics of two tests. Counts that grow with searches and accounts are in `cells`, for the
//! reason given there.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use prometheus::{
    Gauge, GaugeVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, core::Collector,
    proto::MetricFamily,
};

use super::{
    BuildInfo, LEVELS,
    catalog::{self, Family},
    process::Process,
    seconds,
};

/// The instance's families by name, at one moment.
pub(super) type Gathered = BTreeMap<String, MetricFamily>;

/// The metrics of the instance.
pub(super) struct Instance {
    registry: Registry,
    log_messages: [IntCounter; LEVELS.len()],
    reload_successful: IntGauge,
    /// A vector without labels, because there is no sample before the first success.
    reload_success_time: GaugeVec,
    sink_delivered: IntCounterVec,
    sink_errors: IntCounterVec,
    sink_rejected: IntCounterVec,
}

/// The counters of one sink.
#[derive(Debug)]
pub(super) struct SinkCounters {
    pub(super) delivered: IntCounter,
    pub(super) errors: IntCounter,
    pub(super) rejected: IntCounter,
}

// === impl Instance ===

impl Instance {
    pub(super) fn new(build: BuildInfo) -> Self {
        let registry = Registry::new();
        let build_info = valid(GaugeVec::new(
            options(&catalog::BUILD_INFO),
            catalog::BUILD_INFO.labels,
        ));
        build_info
            .with_label_values(&[build.version, build.revision, build.rustversion])
            .set(1.0);
        register(&registry, build_info);
        register(&registry, Process::new());
        let log_messages = counters(&registry, &catalog::LOG_MESSAGES);
        Self {
            log_messages: LEVELS.map(|(_, level)| log_messages.with_label_values(&[level])),
            reload_successful: register(
                &registry,
                valid(IntGauge::with_opts(options(
                    &catalog::CONFIG_RELOAD_SUCCESSFUL,
                ))),
            ),
            reload_success_time: register(
                &registry,
                valid(GaugeVec::new(
                    options(&catalog::CONFIG_RELOAD_TIMESTAMP),
                    catalog::CONFIG_RELOAD_TIMESTAMP.labels,
                )),
            ),
            sink_delivered: counters(&registry, &catalog::SINK_EVENTS),
            sink_errors: counters(&registry, &catalog::SINK_ERRORS),
            sink_rejected: counters(&registry, &catalog::SINK_REJECTED),
            registry,
        }
    }

    pub(super) fn log_message(&self, level: tracing::Level) {
        let place = LEVELS.iter().position(|(known, _)| *known == level);
        if let Some(counter) = place.and_then(|place| self.log_messages.get(place)) {
            counter.inc();
        }
    }

    pub(super) fn config_loaded(&self, at: Timestamp) {
        self.reload_successful.set(1);
        self.reload_success_time().set(seconds(at));
    }

    pub(super) fn config_rejected(&self) {
        self.reload_successful.set(0);
    }

    /// Creates a sink's series, unless they exist.
    pub(super) fn sink(&self, name: &str) -> SinkCounters {
        SinkCounters {
            delivered: self.sink_delivered.with_label_values(&[name]),
            errors: self.sink_errors.with_label_values(&[name]),
            rejected: self.sink_rejected.with_label_values(&[name]),
        }
    }

    /// Removes a sink's series.
    pub(super) fn remove_sink(&self, name: &str) {
        for counters in [&self.sink_delivered, &self.sink_errors, &self.sink_rejected] {
            // Removing a series that does not exist is fine.
            counters.remove_label_values(&[name]).ok();
        }
    }

    /// Returns the present values, without the families that have no samples.
    pub(super) fn gather(&self) -> Gathered {
        let families = self.registry.gather().into_iter();
        families
            .map(|family| (family.name().to_owned(), family))
            .collect()
    }

    fn reload_success_time(&self) -> Gauge {
        self.reload_success_time.with_label_values::<&str>(&[])
    }
}

impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Instance").finish_non_exhaustive()
    }
}

pub(super) fn options(family: &Family) -> Opts {
    Opts::new(family.name, family.help)
}

fn counters(registry: &Registry, family: &Family) -> IntCounterVec {
    register(
        registry,
        valid(IntCounterVec::new(options(family), family.labels)),
    )
}

fn register<C: Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
    valid(registry.register(Box::new(collector.clone())));
    collector
}

/// Unwraps a result that cannot be an error, because each name stands in the catalogue once.
pub(super) fn valid<T>(outcome: prometheus::Result<T>) -> T {
    outcome.expect("the names in the catalogue are valid and distinct")
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILD: BuildInfo = BuildInfo {
        version: "1",
        revision: "2",
        rustversion: "3",
    };

    #[test]
    fn two_instances_share_nothing_and_the_default_registry_stays_empty() {
        let (one, other) = (Instance::new(BUILD), Instance::new(BUILD));
        one.log_message(tracing::Level::ERROR);
        let errors = |instance: &Instance| {
            let family = instance
                .gather()
                .remove(catalog::LOG_MESSAGES.name)
                .unwrap();
            let samples = family.get_metric().iter();
            samples
                .map(|sample| sample.get_counter().get_value())
                .sum::<f64>()
        };
        assert_eq!((errors(&one), errors(&other)), (1.0, 0.0));
        assert!(prometheus::gather().is_empty());
    }

    #[test]
    fn a_sink_that_comes_back_counts_from_zero_whatever_still_ends_for_the_old_one() {
        let instance = Instance::new(BUILD);
        let old = instance.sink("file");
        old.delivered.inc_by(3);
        instance.remove_sink("file");
        assert!(!instance.gather().contains_key(catalog::SINK_EVENTS.name));
        let new = instance.sink("file");
        old.delivered.inc();
        assert_eq!(new.delivered.get(), 0);
    }
}
