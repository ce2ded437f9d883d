//! What happens to alerts during a test.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::collections::BTreeSet;

use fastrand::Rng;
use opsramp_exporter::simulator::{Action, DEMO_TENANT, Simulator, State};

use crate::exporter::Members;

/// About how many alerts are kept open.
const OPEN: usize = 150;

/// Maximum number of alerts that have left and have no line of it yet. The allowance permits 500
/// questions a minute for the reasons. If an exporter that is killed all the time left more alerts
/// waiting, the last exporter would have to write some lines without a reason.
const LEAVING: usize = 200;

/// What the lines have told so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    opened: BTreeSet<String>,
    /// Alerts with an `opened` line that the test has not made leave yet.
    open: Vec<String>,
    /// Alerts that the test has made leave and that have no `left` line yet.
    leaving: BTreeSet<String>,
}

// === impl Told ===

impl Told {
    /// Notes a line. A line that was lost with the power may come again.
    pub(crate) fn note(&mut self, line: &Members) {
        let alert = line.text("alert_id");
        match line.text("event") {
            "opened" if self.opened.insert(alert.to_owned()) => self.open.push(alert.to_owned()),
            "left" => {
                self.leaving.remove(alert);
            }
            _ => {}
        }
    }
}

/// Lets something happen to the alerts. Only alerts with an `opened` line are made to leave,
/// because otherwise it would be open which lines they must have.
pub(crate) fn live(opsramp: &Simulator, told: &mut Told, rng: &mut Rng) {
    match rng.u8(..100) {
        0..40 => {
            opsramp.open_many(DEMO_TENANT, rng.usize(1..5)).unwrap();
        }
        40 => {
            // More than a page.
            opsramp.open_many(DEMO_TENANT, 120).unwrap();
        }
        41..60 => {
            let open = opsramp.world(|world, _| world.open_alerts(DEMO_TENANT).unwrap());
            if let Some(id) = rng.choice(open) {
                let state = rng.choice(State::ALL).unwrap();
                opsramp.set_state(id, *state).unwrap();
            }
        }
        _ => {}
    }
    while told.open.len() > OPEN && told.leaving.len() < LEAVING {
        let alert = told.open.swap_remove(rng.usize(..told.open.len()));
        let action = [Action::Acknowledge, Action::Close, Action::Ticket];
        let action = *rng.choice(&action).unwrap();
        let id = opsramp.world(|world, _| world.find(&alert).unwrap());
        opsramp.act(id, action).unwrap();
        told.leaving.insert(alert);
    }
}
