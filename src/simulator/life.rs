//! A life of alerts: they open, get worse, are acknowledged and leave, with storms and quiet
//! times.
//!
//! What happens depends on the seed and the steps taken so far, not on the clock. So a test can go
//! through a year in a second, and repeat it in the same way.

use std::collections::{HashMap, VecDeque};

use jiff::Timestamp;

use super::alert::{Action, AlertId, EventType, Priority, Spec, State};
use super::refusal::Refusal;
use super::world::World;

/// The number of first steps of every tenant that open alerts, so that users soon see something.
const OPENING_STEPS: u32 = 3;
/// The number of departed alerts that are remembered for each tenant because they may come back,
/// oldest first. While all places are taken, further departed alerts are not remembered.
const REMEMBERED: usize = 50;

/// Drives the alerts of a world.
#[derive(Debug)]
pub struct Life {
    random: fastrand::Rng,
    tenants: HashMap<String, TenantLife>,
}

/// The state of a tenant's life.
#[derive(Debug, Default)]
struct TenantLife {
    steps: u32,
    /// The number of next steps in which nothing happens.
    quiet: u32,
    storm: Option<Storm>,
    departed: VecDeque<AlertId>,
}

/// One machine in trouble, and everything that depends on it.
#[derive(Debug)]
struct Storm {
    left: u32,
    host: String,
    victims: Vec<AlertId>,
}

// === impl Life ===

impl Life {
    /// Creates a life that the seed determines.
    pub fn new(seed: u64) -> Self {
        Self {
            random: fastrand::Rng::with_seed(seed),
            tenants: HashMap::new(),
        }
    }

    /// Takes one step for every tenant that has alerts of its own.
    pub fn step_all(&mut self, world: &mut World, open_alerts: usize, now: Timestamp) {
        let tenants: Vec<String> = world.tenants_with_own_alerts().map(str::to_owned).collect();
        for tenant in tenants {
            let stepped = self.step(world, &tenant, open_alerts, now);
            debug_assert!(stepped.is_ok(), "{stepped:?}");
        }
    }

    /// Takes one step for a tenant, in which something happens or nothing. The number of open
    /// alerts is drawn towards `open_alerts`.
    pub fn step(
        &mut self,
        world: &mut World,
        tenant: &str,
        open_alerts: usize,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        let mut life = self.tenants.remove(tenant).unwrap_or_default();
        let stepped = self.advance(world, tenant, &mut life, open_alerts, now);
        self.tenants.insert(tenant.to_owned(), life);
        stepped
    }

    fn advance(
        &mut self,
        world: &mut World,
        tenant: &str,
        life: &mut TenantLife,
        open_alerts: usize,
        now: Timestamp,
    ) -> Result<(), Refusal> {
        life.steps = life.steps.saturating_add(1);
        if let Some(storm) = life.storm.take() {
            life.storm = self.step_storm(world, tenant, storm, now)?;
            return Ok(());
        }
        if life.quiet > 0 {
            life.quiet -= 1;
            return Ok(());
        }
        let open = world.open_count(tenant)?;
        // The number of steps in a hundred that open an alert.
        let openings = match open * 100 / open_alerts.max(1) {
            _ if life.steps <= OPENING_STEPS => 100,
            0..80 => 65,
            80..120 => 40,
            _ => 15,
        };
        if self.random.u32(0..100) < openings || open == 0 {
            world.open(tenant, &Spec::default(), now)?;
            return Ok(());
        }
        let chosen = world.nth_open(tenant, self.random.usize(0..open));
        match (self.random.u32(0..100), chosen) {
            (0..4, _) => life.quiet = self.random.u32(2..6),
            (4..7, _) => {
                life.storm = Some(Storm {
                    left: self.random.u32(3..7),
                    host: format!("core-fra-{:02}", self.random.u32(1..20)),
                    victims: Vec::new(),
                });
            }
            (7..13, _) => {
                if let Some(id) = life.departed.pop_front() {
                    world.act(id, Action::Reopen, now)?;
                }
            }
            (13..28, Some(id)) => {
                let state = State::ALL[self.random.usize(0..3)];
                world.set_state(id, state, now)?;
            }
            (28..38, Some(id)) => world.act(id, Action::Bump, now)?,
            (38..42, Some(id)) => {
                let priority = Priority::ALL[self.random.usize(..Priority::ALL.len())];
                world.set_priority(id, priority, now)?;
            }
            (42..56, Some(id)) => world.act(id, Action::Heal, now)?,
            (roll, Some(id)) => {
                let action = match roll {
                    56..68 => Action::Acknowledge,
                    68..78 => Action::Ticket,
                    78..83 => Action::Suppress,
                    83..85 => Action::Ignore,
                    _ => Action::Close,
                };
                world.act(id, action, now)?;
                if life.departed.len() < REMEMBERED {
                    life.departed.push_back(id);
                }
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Takes a step of a storm: more alerts open for one machine. In the last step an inference
    /// and a root cause open, and the other alerts are correlated.
    fn step_storm(
        &mut self,
        world: &mut World,
        tenant: &str,
        mut storm: Storm,
        now: Timestamp,
    ) -> Result<Option<Storm>, Refusal> {
        if storm.left > 0 {
            storm.left -= 1;
            for _ in 0..self.random.u32(1..5) {
                let spec = Spec {
                    event_type: Some(EventType::Alert),
                    state: Some(State::Critical),
                    resource_name: Some(storm.host.clone()),
                    ..Spec::default()
                };
                storm.victims.push(world.open(tenant, &spec, now)?);
            }
            return Ok(Some(storm));
        }
        let inference = Spec {
            event_type: Some(EventType::Inference),
            state: Some(State::Critical),
            ..Spec::default()
        };
        world.open(tenant, &inference, now)?;
        let cause = Spec {
            event_type: Some(EventType::Rca),
            state: Some(State::Critical),
            subject: Some(format!("Root cause: {} is down", storm.host)),
            resource_name: Some(storm.host),
            ..Spec::default()
        };
        world.open(tenant, &cause, now)?;
        for id in storm.victims.into_iter().skip(1) {
            world.act(id, Action::Correlate, now)?;
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::super::options::Options;
    use super::super::record::ChangeKind;
    use super::*;

    fn lived(steps: i64) -> World {
        let start = Timestamp::from_second(1_700_000_000).unwrap();
        let mut world = World::new(Options::demo(), start);
        let mut life = Life::new(7);
        for step in 0..steps {
            let now = Timestamp::from_second(1_700_000_000 + step).unwrap();
            life.step_all(&mut world, 40, now);
        }
        world
    }

    #[test]
    fn the_same_seed_gives_the_same_life() {
        let (one, other) = (lived(500), lived(500));
        assert_eq!(one.changes_since(0), other.changes_since(0));
        assert!(one.record_position() > 300);
    }

    #[test]
    fn the_first_steps_open_alerts() {
        let world = lived(i64::from(OPENING_STEPS));
        let after_start = world.changes_since(1);
        assert_eq!(after_start.len(), OPENING_STEPS as usize);
        assert!(
            after_start
                .iter()
                .all(|entry| entry.what == ChangeKind::Opened)
        );
    }

    #[test]
    fn the_number_of_open_alerts_stays_within_bounds_and_everything_happens() {
        let world = lived(20_000);
        let open = world.open_count("client_1").unwrap();
        assert!((10..120).contains(&open), "{open} open");
        let changes = world.changes_since(0);
        for status in super::super::Status::ALL {
            if *status != super::super::Status::Purged {
                assert!(changes.iter().any(|h| h.status == *status), "{status}");
            }
        }
        for what in [ChangeKind::Opened, ChangeKind::Changed, ChangeKind::Left] {
            assert!(changes.iter().any(|h| h.what == what), "{what:?}");
        }
    }
}
