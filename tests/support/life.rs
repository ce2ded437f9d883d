//! What happens to alerts while something is tried out.

#![allow(dead_code, reason = "each test crate uses its own part")]

use fastrand::Rng;
use opsramp_exporter::simulator::{Action, DEMO_TENANT, Simulator, State};

/// How many alerts are open, about.
const OPEN: usize = 150;

/// Lets something happen to the alerts. Those that leave are taken from those whose opening has been
/// told: else nobody could say what their lines must be.
pub(crate) fn live(opsramp: &Simulator, told: &mut Vec<String>, rng: &mut Rng) {
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
    while told.len() > OPEN {
        let id = told.swap_remove(rng.usize(..told.len()));
        let action = [Action::Acknowledge, Action::Close, Action::Ticket];
        let action = *rng.choice(&action).unwrap();
        let id = opsramp.world(|world, _| world.find(&id).unwrap());
        opsramp.act(id, action).unwrap();
    }
}
