//! An exposition of 100, 10,000 and 100,000 series: made and compressed, only compressed, and
//! shown again. Run it by `cargo bench --bench exposition`.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stdout,
    reason = "a benchmark that cannot go on stops, and prints its figures"
)]

use std::{io::Write as _, sync::Arc, time::Duration};

use criterion::{BatchSize, Criterion};
use flate2::{Compression, write::GzEncoder};
use jiff::Timestamp;
use opsramp_exporter::{
    clock,
    identity::{SearchKey, Tenant},
    metrics::{BuildInfo, Metrics},
    poll::GroupLabel,
    status::{Board, SearchResult, SearchStatus},
};

#[path = "support/estimate.rs"]
mod estimate;
#[path = "support/report.rs"]
mod report;

use report::{Report, milliseconds};

/// Numbers of searches that have at least 100, 10,000 and 100,000 series.
const SEARCHES: [usize; 3] = [2, 196, 1_990];

/// Metrics of `searches` searches, each of a tenant of its own.
fn metrics(searches: usize, now: Timestamp) -> Metrics {
    let board = Board::default();
    let build = BuildInfo {
        version: "1.0.0",
        revision: "0123456",
        rustversion: "1.95.0",
    };
    let metrics = Metrics::new(board.clone(), build);
    let states = ["Critical", "Warning", "Info", "Ok"];
    let groups = states.map(|state| (vec![Arc::from(state)], 1234));
    for number in 0..searches {
        let key = SearchKey {
            account: "acme".into(),
            tenant: Tenant {
                id: format!("client_{number}").into(),
                name: format!("Example Retail {number}").into(),
            },
            search: "open".into(),
        };
        let cells = metrics.register_search(&key);
        for took in [80, 120, 450] {
            cells.poll_begun();
            cells.poll_ended(Duration::from_millis(took + number as u64 % 50));
        }
        board.set_search(SearchStatus {
            key,
            interval: Duration::from_secs(30),
            stale_after: Duration::from_secs(300),
            up: Some(true),
            result: Some(SearchResult {
                at: now,
                at_since_boot: clock::since_boot(),
                total_results: 4936,
                tracked: 4936,
                complete: true,
                group_by: Arc::new([GroupLabel::State]),
                groups: Arc::new(groups.clone()),
                oldest: Some(now),
            }),
            last_full_read: Some(now),
            next_poll: Some(now),
            polls: std::collections::VecDeque::new(),
            last_error: None,
            lease_held: true,
            lease: None,
            first_attempt_over: true,
        });
    }
    metrics
}

fn compress(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(text.len() / 16), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn measure(criterion: &mut Criterion, report: &mut Report, searches: usize) {
    let now = clock::now();
    let metrics_once = metrics(searches, now);
    let rendering = metrics_once.rendering(now);
    let text = String::from_utf8(rendering.text.to_vec()).unwrap();
    let series = text.lines().filter(|line| !line.starts_with('#')).count();
    let name = series.to_string();

    let mut group = criterion.benchmark_group("exposition");
    group.sample_size(20);
    group.bench_function(format!("made_{name}"), |bencher| {
        bencher.iter_batched(
            // Each rendering needs new metrics, because it is reused for ten times as long as it
            // took.
            || metrics(searches, now),
            |metrics| metrics.rendering(now),
            BatchSize::PerIteration,
        );
    });
    group.bench_function(format!("compressed_{name}"), |bencher| {
        bencher.iter(|| compress(text.as_bytes()));
    });
    group.bench_function(format!("again_{name}"), |bencher| {
        bencher.iter(|| metrics_once.recent_rendering());
    });
    group.finish();

    let took = |what: &str| estimate::median("exposition", &format!("{what}_{name}"));
    let (made, compressed) = (took("made"), took("compressed"));
    report.text(
        &format!("{series} series"),
        &format!(
            "{:.1} kB, compressed {:.1} kB; made in {:.2} ms, of which gzip {:.2} ms; shown again in \
             {:.2} µs",
            text.len() as f64 / 1e3,
            rendering.gzip.len() as f64 / 1e3,
            milliseconds(made),
            milliseconds(compressed),
            took("again").as_secs_f64() * 1e6,
        ),
    );
}

fn main() {
    let mut criterion = estimate::criterion();
    let mut report = Report::new();
    for searches in SEARCHES {
        measure(&mut criterion, &mut report, searches);
    }
    criterion.final_summary();
}
