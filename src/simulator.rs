//! An OpsRamp server in a box: tokens, allowance, paging, a life of alerts, faults on demand.
//!
//! For `demo`, tests and benchmarks. It simulates the *API*, from its documentation, and shares no
//! type with the client in `opsramp`, so that neither can hide the other's mistake. [`World`] is
//! the pure state; [`Simulator`] puts HTTP around it.

mod alert;
mod allowance;
mod options;
mod order;
mod query;
mod record;
mod refusal;
mod render;
mod scenery;
mod token;
mod world;

pub use alert::{Action, AlertId, EventType, Priority, Spec, State, Status, UnknownName};
pub use allowance::Standing;
pub use options::{
    Allowance, Credential, DEMO_KEY, DEMO_SECRET, DEMO_TENANT, Options, Oversized, Pace,
    RetryAfter, TenantOptions, Ts, UnknownKey,
};
pub use query::{Query, SearchParams, Sort};
pub use record::{Happening, What};
pub use refusal::Refusal;
pub use render::{ClientPage, Detail, Page};
pub use token::{Grant, TokenRequest};
pub use world::{Snapshot, World};
