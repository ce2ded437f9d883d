//! The process itself, as `/proc` shows it: CPU time, memory, file descriptors, start time.
//!
//! CPU time is shown in fractions of a second. The usual library shows whole seconds, so that a
//! program that is nearly idle seems to do nothing for hours and then to jump. Without `/proc` the
//! series are left out.

use std::{fs, sync::LazyLock};

use prometheus::{
    core::{Collector, Desc, Describer as _},
    proto::{Counter, Gauge, Metric, MetricFamily, MetricType},
};

use super::{
    catalog::{self, Family, Kind},
    instance::{options, valid},
};

/// The families that are shown.
static FAMILIES: [&Family; 7] = [
    &catalog::PROCESS_CPU,
    &catalog::PROCESS_OPEN_FDS,
    &catalog::PROCESS_MAX_FDS,
    &catalog::PROCESS_VIRTUAL_MEMORY,
    &catalog::PROCESS_RESIDENT_MEMORY,
    &catalog::PROCESS_START_TIME,
    &catalog::PROCESS_THREADS,
];

/// Read only once. The system calculates the boot time from its clock, so if the clock were set,
/// the process would seem to have started again.
static BOOT_TIME: LazyLock<Option<u64>> = LazyLock::new(|| {
    let text = fs::read_to_string("/proc/stat").ok()?;
    parse_boot_time(&text)
});

/// Reads the `process_*` series when they are asked for. It keeps no values, so that a value that
/// cannot be read is absent rather than old.
#[derive(Clone, Debug)]
pub(super) struct Process {
    descriptions: Vec<Desc>,
}

/// The fields of `/proc/self/stat` that are shown.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

// === impl Process ===

impl Process {
    pub(super) fn new() -> Self {
        let describe = |family: &&Family| valid(options(family).describe());
        Self {
            descriptions: FAMILIES.iter().map(describe).collect(),
        }
    }
}

impl Collector for Process {
    fn desc(&self) -> Vec<&Desc> {
        self.descriptions.iter().collect()
    }

    fn collect(&self) -> Vec<MetricFamily> {
        read()
            .into_iter()
            .map(|(family, value)| sampled(family, value))
            .collect()
    }
}

/// Returns the families that can be read, with their values.
fn read() -> Vec<(&'static Family, f64)> {
    let mut values = Vec::with_capacity(FAMILIES.len());
    let stat = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| parse_stat(&text));
    if let Some(stat) = stat {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as f64;
        values.extend([
            (&catalog::PROCESS_CPU, stat.cpu_ticks as f64 / ticks),
            (&catalog::PROCESS_THREADS, stat.threads as f64),
            (&catalog::PROCESS_VIRTUAL_MEMORY, stat.virtual_bytes as f64),
            (
                &catalog::PROCESS_RESIDENT_MEMORY,
                stat.resident_pages as f64 * page,
            ),
        ]);
        if let Some(boot) = *BOOT_TIME {
            let started = boot as f64 + stat.start_ticks as f64 / ticks;
            values.push((&catalog::PROCESS_START_TIME, started));
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The listing itself has one descriptor open.
        let open = entries.count().saturating_sub(1);
        values.push((&catalog::PROCESS_OPEN_FDS, open as f64));
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        values.push((&catalog::PROCESS_MAX_FDS, limit as f64));
    }
    values
}

fn sampled(family: &Family, value: f64) -> MetricFamily {
    let mut sample = Metric::default();
    let mut shown = MetricFamily::default();
    if family.kind == Kind::Counter {
        let mut counter = Counter::default();
        counter.set_value(value);
        sample.set_counter(counter);
        shown.set_field_type(MetricType::COUNTER);
    } else {
        let mut gauge = Gauge::default();
        gauge.set_value(value);
        sample.set_gauge(gauge);
        shown.set_field_type(MetricType::GAUGE);
    }
    shown.set_name(family.name.to_owned());
    shown.set_help(family.help.to_owned());
    shown.set_metric(vec![sample]);
    shown
}

/// Parses `/proc/self/stat`. The fields are numbered as in `proc_pid_stat(5)`. The second is the
/// program's name in parentheses, which may contain any characters.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let field = |number: usize| fields.get(number.checked_sub(3)?)?.parse::<u64>().ok();
    Some(Stat {
        cpu_ticks: field(14)? + field(15)?,
        threads: field(20)?,
        start_ticks: field(22)?,
        virtual_bytes: field(23)?,
        resident_pages: field(24)?,
    })
}

fn parse_boot_time(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_found_whatever_the_program_is_called() {
        let text = "17 (a) S 1 (b) R 1 17 17 0 -1 4194304 900 0 0 0 250 75 0 0 20 0 4 0 5000 \
                    123456789 2048 18446744073709551615 1 1 0 0";
        assert_eq!(
            parse_stat(text),
            Some(Stat {
                cpu_ticks: 325,
                threads: 4,
                start_ticks: 5000,
                virtual_bytes: 123_456_789,
                resident_pages: 2048,
            })
        );
        assert_eq!(parse_stat("17 (a) S 1"), None);
        assert_eq!(parse_stat(""), None);
        assert_eq!(
            parse_boot_time("cpu 1 2\nbtime 1790000000\n"),
            Some(1_790_000_000)
        );
    }

    #[test]
    fn this_process_is_shown() {
        let values = read();
        for family in FAMILIES {
            let shown = values.iter().filter(|(shown, _)| shown.name == family.name);
            assert_eq!(shown.count(), 1, "{} in {values:?}", family.name);
        }
        assert_eq!(Process::new().collect().len(), Process::new().desc().len());
    }

    #[test]
    fn every_family_of_the_process_is_described() {
        let announced = catalog::ALL.iter().map(|family| family.name);
        let described = FAMILIES.iter().map(|family| family.name);
        assert!(
            announced
                .filter(|name| name.starts_with("process_"))
                .eq(described)
        );
    }
}
