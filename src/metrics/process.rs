//! The process itself, as `/proc` shows it: CPU time, memory, file descriptors, start time.
//!
//! CPU time is shown in fractions of a second: in whole ones, as the usual library has it, a
//! program that is nearly idle seems to do nothing for hours and then to jump. Where there is no
//! `/proc` the series are left out.

use std::fs;

use super::{
    catalog::{self, Family},
    exposition::{Exposition, Labels},
};

/// What `/proc/self/stat` says, of what is shown.
#[derive(Debug, PartialEq)]
struct Stat {
    cpu_ticks: u64,
    threads: u64,
    start_ticks: u64,
    virtual_bytes: u64,
    resident_pages: u64,
}

/// Writes the `process_*` series.
pub(super) fn write(exposition: &mut Exposition) {
    let mut put = |family: &Family, value: f64| {
        exposition.family(family).put(&Labels::default(), value);
    };
    let stat = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| parse_stat(&text));
    if let Some(stat) = stat {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        let page = rustix::param::page_size() as f64;
        put(&catalog::PROCESS_CPU, stat.cpu_ticks as f64 / ticks);
        put(&catalog::PROCESS_THREADS, stat.threads as f64);
        put(&catalog::PROCESS_VIRTUAL_MEMORY, stat.virtual_bytes as f64);
        put(
            &catalog::PROCESS_RESIDENT_MEMORY,
            stat.resident_pages as f64 * page,
        );
        let boot = fs::read_to_string("/proc/stat")
            .ok()
            .and_then(|text| parse_boot_time(&text));
        if let Some(boot) = boot {
            put(
                &catalog::PROCESS_START_TIME,
                boot as f64 + stat.start_ticks as f64 / ticks,
            );
        }
    }
    if let Ok(entries) = fs::read_dir("/proc/self/fd") {
        // The listing itself has one open.
        put(
            &catalog::PROCESS_OPEN_FDS,
            entries.count().saturating_sub(1) as f64,
        );
    }
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    if let Some(limit) = limit {
        put(&catalog::PROCESS_MAX_FDS, limit as f64);
    }
}

/// The fields are numbered as in `proc_pid_stat(5)`. The second is the program's name in
/// parentheses, in which anything may stand.
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
        let mut exposition = Exposition::with_capacity(0);
        write(&mut exposition);
        let text = exposition.into_text();
        for family in catalog::ALL {
            if family.name.starts_with("process_") {
                assert!(
                    text.contains(&format!("\n{} ", family.name)),
                    "{}\n{text}",
                    family.name
                );
            }
        }
    }
}
