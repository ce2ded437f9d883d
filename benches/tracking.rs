//! Decoding and tracking a page against `serde_json` alone on the same bytes, and the memory of a
//! tracked alert: `cargo bench --bench tracking`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{borrow::Cow, hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput};
use opsramp_exporter::{
    clock,
    opsramp::Answer,
    poll::{GroupLabel, sightings},
    simulator::{self, SearchParams, World},
    track::{KnownAlert, Sighting, Tracker},
};
use serde::Deserialize;

#[path = "support/estimate.rs"]
mod estimate;
#[path = "support/report.rs"]
mod report;

use report::{Goal, Report, mebibytes};

const PAGES: usize = 20;
const TRACKED: u64 = 1_000_000;

/// A plain implementation for these fields: borrowed, and no more lenient than the derived code.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "to be read is all they are for")]
struct Plain<'a> {
    #[serde(borrow)]
    results: Vec<PlainAlert<'a>>,
    total_results: u64,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
#[expect(dead_code, reason = "to be read is all they are for")]
struct PlainAlert<'a> {
    #[serde(borrow)]
    unique_id: Cow<'a, str>,
    #[serde(borrow, default)]
    subject: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    current_state: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    service_name: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    metric: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    component: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    alert_type: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    priority: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    created_date: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    updated_time: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    client_unique_id: Option<Cow<'a, str>>,
}

fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    statm.split(' ').nth(1).unwrap().parse::<u64>().unwrap() * rustix::param::page_size() as u64
}

fn tracker() -> Tracker {
    Tracker::new(Arc::new([GroupLabel::State]), 200)
}

fn pages() -> Vec<String> {
    let now = clock::now();
    let options = simulator::Options {
        tenants: vec![simulator::TenantOptions {
            id: "client_1".to_owned(),
            alerts: PAGES * 500,
            ..simulator::TenantOptions::default()
        }],
        life: None,
        ..simulator::Options::default()
    };
    let mut world = World::new(options, now);
    (1..=PAGES)
        .map(|page| {
            let params = [
                ("pageNo".to_owned(), page.to_string()),
                ("pageSize".to_owned(), "500".to_owned()),
                ("queryString".to_owned(), "actions:OPEN".to_owned()),
            ];
            let params = SearchParams::parse(&params, world.options()).unwrap();
            let page = world.search("client_1", &params, now).unwrap();
            String::from_utf8(page.to_json(now)).unwrap()
        })
        .collect()
}

fn reading(criterion: &mut Criterion, report: &mut Report) {
    let pages = pages();
    let bytes: usize = pages.iter().map(String::len).sum();
    let answers: Vec<Answer> = pages
        .iter()
        .map(|page| Answer::of_search(page.clone().into_bytes()))
        .collect();
    let mut known = tracker();
    for answer in &answers {
        let page = answer.page(1, false).unwrap();
        for sighting in sightings(&page.alerts) {
            known.load(KnownAlert {
                sighting,
                ordinal: 1,
                created_at: None,
                group: vec![sighting.state.into()],
            });
        }
    }

    let mut group = criterion.benchmark_group("reading");
    group.throughput(Throughput::Bytes(bytes as u64));
    group.sample_size(20);
    group.bench_function("borrowed", |bencher| {
        bencher.iter(|| {
            for page in &pages {
                black_box(serde_json::from_str::<Plain<'_>>(page).unwrap());
            }
        });
    });
    group.bench_function("value", |bencher| {
        bencher.iter(|| {
            for page in &pages {
                black_box(serde_json::from_str::<serde_json::Value>(page).unwrap());
            }
        });
    });
    group.bench_function("tracked", |bencher| {
        bencher.iter(|| {
            for answer in &answers {
                let page = answer.page(1, false).unwrap();
                let sightings = sightings(&page.alerts);
                let delta = known.compare(&sightings, |_| false);
                assert!(delta.opened.is_empty());
                known.adopt(Vec::new(), &sightings);
            }
        });
    });
    group.finish();

    let [borrowed, value, tracked] = ["borrowed", "value", "tracked"]
        .map(|name| estimate::median("reading", name).as_secs_f64());
    let speed = |took: f64| bytes as f64 / took / 1e6;
    report.row(
        "`serde_json::from_str` into borrowed fields",
        speed(borrowed),
        " MB/s",
        None,
    );
    report.row("decode + track", speed(tracked), " MB/s", None);
    report.row(
        "the same, of `from_str` into borrowed fields",
        borrowed / tracked,
        "",
        Goal::AtLeast(0.5),
    );
    report.row(
        "`serde_json::Value`, of `from_str` into borrowed fields",
        borrowed / value,
        "",
        None,
    );
}

fn memory(report: &mut Report) {
    let before = resident();
    let mut tracker = tracker();
    for number in 0..TRACKED {
        let id = (5_000_000 + number).to_string();
        let state = ["Critical", "Warning", "Info", "Ok"][number as usize % 4];
        let sighting = Sighting {
            id: &id,
            digest: number,
            state,
            status: "New",
        };
        let group = vec![state.into()];
        tracker.load(KnownAlert {
            sighting,
            ordinal: 1,
            created_at: Some(number as i64),
            group,
        });
    }
    let used = resident() - before;
    report.row(
        "memory of 1,000,000 tracked alerts",
        mebibytes(used),
        " MiB",
        Goal::AtMost(220.0),
    );
    report.row(
        "the same, of each",
        used as f64 / TRACKED as f64,
        " bytes",
        Goal::AtMost(200.0),
    );
    black_box(&tracker);
}

fn main() {
    let mut report = Report::new();
    // Memory comes first, while the process is small.
    memory(&mut report);
    let mut criterion = estimate::criterion();
    reading(&mut criterion, &mut report);
    criterion.final_summary();
}
