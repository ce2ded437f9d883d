//! Replicas are killed, or are stopped past their leases and woken, while alerts open.
//!
//! `OPSRAMP_TEST_KILLS` and `OPSRAMP_TEST_STOPS` say how often (the acceptance run: 50 and 20),
//! `OPSRAMP_TEST_SEED` repeats a run.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::Duration,
};

use fastrand::Rng;
use opsramp_exporter::simulator::Simulator;
use tokio::time::Instant;

use crate::{
    LEASE,
    exporter::{Exporter, Members, PATIENCE, Place, Signal, eventually, number, seed},
    lock::Lock,
    opsramp, postgres, replica, schema_of, tenant,
};

const REPLICAS: usize = 3;
const TENANTS: usize = 4;
const SEARCHES: usize = 2;

/// Longer than a lease.
const SLEEP: Duration = Duration::from_secs(LEASE.as_secs() + 1);

/// More lines than are delivered in one batch here.
const BATCH: usize = TENANTS * SEARCHES * 20;

/// The content of the log files: for each event the places of its lines, and which alert of which
/// search each line is about.
#[derive(Debug, Default)]
struct Told {
    events: BTreeMap<String, Vec<(usize, usize)>>,
    alerts: BTreeSet<(String, String)>,
    /// How many lines each file has.
    lines: Vec<usize>,
}

/// Lines of one file that another replica may have as well, because they were written around the
/// moment when the file's replica was disturbed.
#[derive(Debug)]
struct Excused {
    file: usize,
    lines: Range<usize>,
}

impl Told {
    /// Reads the files of all replicas. No file may have an event twice.
    fn read(places: &[Place]) -> Self {
        let mut told = Self::default();
        for (file, place) in places.iter().enumerate() {
            let mut own = BTreeSet::new();
            let lines = place.lines_of("alerts.jsonl");
            told.lines.push(lines.len());
            for (number, line) in lines.iter().enumerate() {
                let record = Members::parse(line);
                let id = record.text("event_id").to_owned();
                let alert = record.text("alert_id").to_owned();
                told.alerts
                    .insert((alert, record.text("search").to_owned()));
                assert!(own.insert(id.clone()), "doubled in one file: {line}");
                told.events.entry(id).or_default().push((file, number));
            }
        }
        told
    }

    /// Returns the number of superfluous lines, each of which must be excused.
    fn doubled(&self, excused: &[Excused]) -> usize {
        let mut doubled = 0;
        for (id, places) in self.events.iter().filter(|(_, places)| places.len() > 1) {
            let is_excused = |(file, line): &(usize, usize)| {
                let mut all = excused.iter();
                all.any(|it| it.file == *file && it.lines.contains(line))
            };
            let inexcusable = places.iter().filter(|place| !is_excused(place)).count();
            assert!(inexcusable <= 1, "{id} at {places:?}, excused: {excused:?}");
            doubled += places.len() - 1;
        }
        doubled
    }
}

/// Returns what must be logged: each alert by each search.
fn expected(opsramp: &Simulator) -> BTreeSet<(String, String)> {
    let mut expected = BTreeSet::new();
    for tenant in (0..TENANTS).map(tenant) {
        let alerts = opsramp.world(|world, _| {
            let open = world.open_alerts(&tenant).unwrap();
            let snapshots = open.into_iter().map(|id| world.snapshot(id).unwrap());
            snapshots.map(|it| it.unique_id).collect::<Vec<_>>()
        });
        for alert in alerts {
            expected.extend((0..SEARCHES).map(|search| (alert.clone(), search.to_string())));
        }
    }
    expected
}

async fn wait_until_all_is_told(places: &[Place], opsramp: &Simulator) -> Told {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (told, expected) = (Told::read(places), expected(opsramp));
        let lost = expected.difference(&told.alerts).count();
        if lost == 0 {
            assert_eq!(told.alerts, expected);
            return told;
        }
        assert!(
            Instant::now() < deadline,
            "{lost} of {} are lost",
            expected.len()
        );
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// Lets alerts open for a while.
async fn live(opsramp: &Simulator, rng: &mut Rng, how_long: Duration) {
    let until = Instant::now() + how_long;
    while Instant::now() < until {
        let tenant = tenant(rng.usize(..TENANTS));
        opsramp.open_many(&tenant, rng.usize(1..4)).unwrap();
        tokio::time::sleep(Duration::from_millis(rng.u64(20..120))).await;
    }
}

async fn survive(
    variable: &str,
    ordinary: usize,
    mut disturb: impl AsyncFnMut(&Place, Exporter, &Simulator, &mut Rng) -> Exporter,
) {
    let times = number(variable).map_or(ordinary, |times| usize::try_from(times).unwrap());
    let seed = seed();
    eprintln!("{times} times, OPSRAMP_TEST_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let opsramp = opsramp(TENANTS).await;
    let database = postgres::shared().fresh();
    let places = [(); REPLICAS].map(|()| replica(&opsramp, TENANTS, SEARCHES, &database));
    let mut replicas = Vec::new();
    for place in &places {
        replicas.push(place.start().await);
    }
    let mut excused = Vec::new();
    for _ in 0..times {
        let pause = Duration::from_millis(rng.u64(200..2500));
        live(&opsramp, &mut rng, pause).await;
        let victim = rng.usize(..REPLICAS);
        let replica = replicas.remove(victim);
        let before = Told::read(&places).lines[victim];
        let replica = disturb(&places[victim], replica, &opsramp, &mut rng).await;
        replicas.insert(victim, replica);
        excused.push(Excused {
            file: victim,
            // The batch that the replica had begun may be written a little later.
            lines: before.saturating_sub(BATCH)..before + BATCH,
        });
    }
    wait_until_all_is_told(&places, &opsramp).await;
    for replica in replicas {
        replica.stop().await;
    }
    let told = Told::read(&places);
    let doubled = told.doubled(&excused);
    eprintln!(
        "{} events, {doubled} told by two replicas",
        told.events.len()
    );
    // A replica that logs an alert again does so with the same event id.
    assert_eq!(told.alerts.len(), told.events.len());
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_replicas_are_killed() {
    let kill = async |place: &Place, replica: Exporter, _: &Simulator, _: &mut Rng| {
        replica.kill().await;
        place.start().await
    };
    survive("OPSRAMP_TEST_KILLS", 4, kill).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_lost_when_replicas_sleep_past_their_leases() {
    let stop = async |_: &Place, replica: Exporter, opsramp: &Simulator, rng: &mut Rng| {
        replica.signal(Signal::STOP);
        live(opsramp, rng, SLEEP).await;
        replica.signal(Signal::CONT);
        replica
    };
    survive("OPSRAMP_TEST_STOPS", 2, stop).await;
}

/// The leases end one after the other, so the replica is given its own lines again in parts.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_replica_wrote_before_it_died_is_not_written_again_though_its_file_was_rotated() {
    const TENANTS: usize = 12;
    let opsramp = opsramp(TENANTS).await;
    let database = postgres::shared().fresh();
    let schema = schema_of(&database);
    let mut place = replica(&opsramp, TENANTS, 1, &database);
    let exporter = place.start().await;
    // The address identifies the replica when it is started again.
    let (_, address) = exporter.url.split_once("://").unwrap();
    place.config["web"]["listen_addresses"] = serde_json::json!([address]);
    let ids = || {
        let files = ["alerts.jsonl.1", "alerts.jsonl"];
        let lines = files.iter().flat_map(|file| place.lines_of(file));
        let id = |line: String| Members::parse(&line).text("event_id").to_owned();
        lines.map(id).collect::<Vec<_>>()
    };
    let wait_for_lines = async |lines: usize| {
        eventually("all is told", async || {
            ids().into_iter().collect::<BTreeSet<_>>().len() == lines
        })
        .await;
    };
    let open_one_each = || {
        for number in 0..TENANTS {
            opsramp.open_many(&tenant(number), 1).unwrap();
        }
    };
    wait_for_lines(2 * TENANTS).await;
    // While one line cannot be acknowledged, all others of the next batch come together. That batch
    // is written and cannot be acknowledged at all.
    let lock = Lock::take(
        &database,
        "CREATE SEQUENCE rows;
         CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
            AS $$ BEGIN
                IF nextval('rows') > 1 THEN RAISE EXCEPTION 'refused'; END IF;
                RETURN NEW;
            END $$;
         CREATE TRIGGER refuse BEFORE UPDATE ON progress
            FOR EACH ROW EXECUTE FUNCTION refuse()",
    )
    .await;
    opsramp.open_many(&tenant(0), 1).unwrap();
    lock.wait_until_somebody_waits().await;
    open_one_each();
    let journalled = format!("SELECT sum(journal_end) FROM {schema}.search");
    let all = (3 * TENANTS + 1).to_string();
    eventually("all is journalled", async || {
        postgres::shared().sql(&journalled) == all
    })
    .await;
    lock.let_go().await;
    wait_for_lines(3 * TENANTS + 1).await;
    exporter.kill().await;
    postgres::shared().sql(&format!("DROP TRIGGER refuse ON {schema}.progress"));
    std::fs::rename(place.path("alerts.jsonl"), place.path("alerts.jsonl.1")).unwrap();
    let exporter = place.start().await;
    // New events of a search come behind the events that are delivered again.
    open_one_each();
    wait_for_lines(4 * TENANTS + 1).await;
    exporter.stop().await;
    assert_eq!(ids().len(), 4 * TENANTS + 1, "lines are doubled");
}
