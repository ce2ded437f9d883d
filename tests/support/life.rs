//! What happens to alerts while something is tried out.

#![allow(dead_code, reason = "each test crate uses its own part")]

use std::collections::BTreeSet;

use fastrand::Rng;
use opsramp_exporter::simulator::{Action, DEMO_TENANT, Simulator, State};

use crate::exporter::Members;

/// How many alerts are open, about.
const OPEN: usize = 150;

/// How many may have left without a line yet. The allowance has 500 questions a minute for their
/// reasons: where more of them wait for an exporter that is always killed, the last one has to tell
/// some without.
const LEAVING: usize = 200;

/// What the lines have told so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    opened: BTreeSet<String>,
    /// Those among them that nobody has made leave yet.
    open: Vec<String>,
    /// Those that have been made to leave, until that is told.
    leaving: BTreeSet<String>,
}

// === impl Told ===

impl Told {
    /// Takes note of a line. One that was lost with the power may come again.
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

/// Lets something happen to the alerts. Those that leave are taken from those whose opening has been
/// told: else nobody could say what their lines must be.
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
