//! Basic authentication.
//!
//! Checking a bcrypt hash takes a tenth of a second on purpose. So pairs of user and password that
//! were right are remembered, by a keyed hash that dies with the process. All other pairs are
//! checked one at a time, off the threads that serve. Each wrong pair is followed by a rest. The
//! queue is bounded, and one client gets only a part of it. A client that guesses passwords takes
//! half a core at most, and gives way to clients that have guessed less, or have been right
//! before.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::Arc,
};

use axum::http::HeaderValue;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use parking_lot::Mutex;
use ring::{hmac, rand::SystemRandom};
use tokio::{sync::oneshot, time::Instant};

use crate::secret::{REDACTED, Secret};

/// Maximum number of pairs that are remembered. One user may have several, because bcrypt looks at
/// the first 72 bytes only.
const REMEMBERED: usize = 64;
/// Maximum number of checks that wait for the one under way.
const WAITING: usize = 16;
/// Maximum number of waiting checks of one client.
const WAITING_OF_ONE: usize = 4;
/// How often a client that was right may be wrong before it counts like a new client.
const CREDIT: i32 = 10;
/// Maximum number of clients whose results are kept. Above that, the client most like a new one is
/// forgotten.
const KNOWN_CLIENTS: usize = 1024;
/// A check with this cost takes about five seconds; each further step doubles the time.
const HIGHEST_COST: u32 = 16;

/// A bcrypt hash. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    text: String,
    cost: u32,
}

/// The text is not a hash that can be used; the message holds nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// The text is something else.
    #[error("is not a bcrypt hash; make one with `htpasswd -nBC 10 \"\"`")]
    Malformed,
    /// Checking the hash takes too long.
    #[error("has the cost {cost}, with which one check takes {}; use 10 to 14", time_for(*cost))]
    Expensive {
        /// The hash's cost.
        cost: u32,
    },
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Verdict {
    /// The client may see the site.
    Welcome,
    /// The request has no password, or a wrong one.
    Refused,
    /// Too many requests wait for a check of their passwords.
    Busy,
}

/// Checks users and passwords.
pub(super) struct Passwords {
    users: BTreeMap<String, PasswordHash>,
    /// The hash that is checked for an unknown user, so that the time does not tell whether the
    /// user exists.
    decoy: PasswordHash,
    check: Check,
    memory: PasswordMemory,
}

/// The passwords that were right, and the results of clients. The memory may outlive a change of
/// the users, because a pair is remembered together with its hash. Cheap to clone.
#[derive(Clone)]
pub struct PasswordMemory(Arc<Memory>);

struct Memory {
    key: hmac::Key,
    right: Remembered,
    queue: Mutex<Queue>,
}

/// The pairs that were right, the oldest first.
#[derive(Default)]
struct Remembered(Mutex<VecDeque<hmac::Tag>>);

/// Whether a password belongs to a hash; slow.
type Check = Arc<dyn Fn(&Secret, &PasswordHash) -> bool + Send + Sync>;

/// The clients that wait for a check, in the order in which they came.
#[derive(Default)]
struct Queue {
    /// A check is under way.
    is_busy: bool,
    waiting: Vec<Waiting>,
    /// How often each client was wrong since it was last right, less `CREDIT` if it ever was
    /// right. Clients that are not listed: 0.
    wrongs: HashMap<IpAddr, i32>,
}

struct Waiting {
    client: IpAddr,
    /// If this is dropped, another client has taken the place.
    slot: oneshot::Sender<CheckSlot>,
}

/// The right to the one check that may be under way. It passes to the next client when it is
/// dropped.
struct CheckSlot(Arc<Memory>);

// === impl Passwords ===

impl Passwords {
    pub(super) fn new(users: BTreeMap<String, PasswordHash>, memory: PasswordMemory) -> Self {
        let check = |password: &Secret, hash: &PasswordHash| {
            bcrypt::verify(password.expose(), &hash.text).unwrap_or(false)
        };
        Self::checked_by(users, Arc::new(check), memory)
    }

    fn checked_by(
        users: BTreeMap<String, PasswordHash>,
        check: Check,
        memory: PasswordMemory,
    ) -> Self {
        let cost = users.values().map(|hash| hash.cost).max().unwrap_or(10);
        Self {
            users,
            decoy: PasswordHash::decoy(cost),
            check,
            memory,
        }
    }

    pub(super) async fn admit(
        &self,
        authorization: Option<&HeaderValue>,
        client: IpAddr,
    ) -> Verdict {
        let Some((user, password)) = authorization.and_then(credentials) else {
            return Verdict::Refused;
        };
        let known = self.users.get(&user);
        let hash = known.unwrap_or(&self.decoy);
        let tag = self.tag(&user, hash, &password);
        let memory = &self.memory.0;
        if memory.right.contains(&tag) {
            return Verdict::Welcome;
        }
        let who = network(client);
        let Some(slot) = memory.queue_up(who) else {
            return Verdict::Busy;
        };
        let Ok(slot) = slot.await else {
            return Verdict::Busy;
        };
        // While this request waited, another one may have proved the same pair.
        if memory.right.contains(&tag) {
            return Verdict::Welcome;
        }
        let (tell, told) = oneshot::channel();
        let (check, hash, known) = (Arc::clone(&self.check), hash.clone(), known.is_some());
        // The check itself keeps the slot: a client that leaves does not make room for another
        // one. And the result is remembered before the next client looks for it.
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let right = check(&password, &hash) && known;
            if right {
                slot.0.right.add(tag);
            }
            slot.0.queue.lock().take_note(who, right);
            // The client may have left.
            tell.send(right).ok();
            if !right {
                std::thread::sleep(begun.elapsed());
            }
            drop(slot);
        });
        if told.await == Ok(true) {
            Verdict::Welcome
        } else {
            tracing::warn!(%client, "a client was refused: its user name or password is wrong");
            Verdict::Refused
        }
    }

    fn tag(&self, user: &str, hash: &PasswordHash, password: &Secret) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.memory.0.key);
        for part in [user, &hash.text, password.expose()] {
            context.update(&part.len().to_be_bytes());
            context.update(part.as_bytes());
        }
        context.sign()
    }
}

// === impl PasswordMemory ===

impl Default for PasswordMemory {
    fn default() -> Self {
        Self(Arc::new(Memory {
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .expect("a system without randomness has no TLS either"),
            right: Remembered::default(),
            queue: Mutex::default(),
        }))
    }
}

impl fmt::Debug for PasswordMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PasswordMemory").finish_non_exhaustive()
    }
}

// === impl Memory ===

impl Memory {
    /// Returns where the client's slot will arrive, unless the client has to make room for another
    /// one; `None` if there is no place for it.
    fn queue_up(self: &Arc<Self>, client: IpAddr) -> Option<oneshot::Receiver<CheckSlot>> {
        let (slot, coming) = oneshot::channel();
        let mut queue = self.queue.lock();
        if !queue.is_busy {
            queue.is_busy = true;
            drop(queue);
            // Sending cannot fail: the receiver is still here.
            slot.send(CheckSlot(Arc::clone(self))).ok();
            return Some(coming);
        }
        queue.waiting.retain(|other| !other.slot.is_closed());
        let own = queue.waiting.iter().filter(|it| it.client == client);
        if own.count() >= WAITING_OF_ONE {
            return None;
        }
        if queue.waiting.len() >= WAITING {
            let wrongs = |queue: &Queue, at: usize| queue.wrongs_of(queue.waiting[at].client);
            let worst = (0..WAITING).max_by_key(|&at| wrongs(&queue, at))?;
            if queue.wrongs_of(client) >= wrongs(&queue, worst) {
                return None;
            }
            queue.waiting.remove(worst);
        }
        queue.waiting.push(Waiting { client, slot });
        Some(coming)
    }
}

// === impl Queue ===

impl Queue {
    fn wrongs_of(&self, client: IpAddr) -> i32 {
        self.wrongs.get(&client).copied().unwrap_or_default()
    }

    /// Takes the next client out of the queue: among those that were wrong the least, the first.
    fn next(&mut self) -> Option<Waiting> {
        let next =
            (0..self.waiting.len()).min_by_key(|&at| self.wrongs_of(self.waiting[at].client))?;
        Some(self.waiting.remove(next))
    }

    fn take_note(&mut self, client: IpAddr, right: bool) {
        let wrongs = self.wrongs.entry(client).or_default();
        *wrongs = if right {
            -CREDIT
        } else {
            wrongs.saturating_add(1)
        };
        if self.wrongs.len() > KNOWN_CLIENTS {
            let plainest = self.wrongs.iter().min_by_key(|(_, wrongs)| wrongs.abs());
            if let Some(client) = plainest.map(|(client, _)| *client) {
                self.wrongs.remove(&client);
            }
        }
    }
}

// === impl CheckSlot ===

impl Drop for CheckSlot {
    fn drop(&mut self) {
        let mut queue = self.0.queue.lock();
        let next = queue.next();
        queue.is_busy = next.is_some();
        drop(queue);
        if let Some(next) = next {
            // If that client has left, the slot is dropped here, which passes it on.
            next.slot.send(Self(Arc::clone(&self.0))).ok();
        }
    }
}

/// Returns user and password, if the header is well-formed.
fn credentials(authorization: &HeaderValue) -> Option<(String, Secret)> {
    let (scheme, encoded) = authorization.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = BASE64_STANDARD.decode(encoded.trim()).ok()?;
    let text = Secret::new(String::from_utf8(decoded).ok()?);
    let (user, password) = text.expose().split_once(':')?;
    Some((user.to_owned(), Secret::new(password)))
}

/// Returns what counts as one client: an IPv4 address, or the IPv6 network (/64) of one site.
pub(in crate::web) fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(prefix.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

// === impl Remembered ===

impl Remembered {
    fn contains(&self, tag: &hmac::Tag) -> bool {
        let tags = self.0.lock();
        tags.iter().any(|other| other.as_ref() == tag.as_ref())
    }

    fn add(&self, tag: hmac::Tag) {
        let mut tags = self.0.lock();
        if tags.len() >= REMEMBERED {
            tags.pop_front();
        }
        tags.push_back(tag);
    }
}

// === impl PasswordHash ===

impl PasswordHash {
    /// Returns a hash that matches no password, and is as slow to check as others of this cost.
    fn decoy(cost: u32) -> Self {
        Self {
            text: format!("$2b${cost:02}${}", "e".repeat(53)),
            cost,
        }
    }
}

impl FromStr for PasswordHash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let parts: bcrypt::HashParts = text.parse().map_err(|_| HashError::Malformed)?;
        match parts.get_cost() {
            0..4 => Err(HashError::Malformed),
            cost @ 4..=HIGHEST_COST => Ok(Self {
                text: text.to_owned(),
                cost,
            }),
            cost => Err(HashError::Expensive { cost }),
        }
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

/// Returns about how long a check takes.
fn time_for(cost: u32) -> &'static str {
    match cost {
        ..=17 => "ten seconds",
        18..=20 => "a minute",
        _ => "minutes or hours",
    }
}

#[cfg(test)]
mod tests;
