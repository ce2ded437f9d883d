//! Basic authentication.
//!
//! A bcrypt hash takes a tenth of a second to check on purpose. So pairs of user and password that
//! were right are remembered, by a keyed hash that dies with the process; all others are checked
//! one at a time off the threads that serve, each wrong one followed by a rest, with a bounded
//! queue of which one client gets a part only. Whoever guesses passwords takes half a core at most,
//! and does not keep those out who know theirs.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    net::IpAddr,
    str::FromStr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use axum::http::HeaderValue;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use ring::{hmac, rand::SystemRandom};
use tokio::{
    sync::{Semaphore, oneshot},
    time::Instant,
};

use crate::secret::{REDACTED, Secret};

/// Pairs that are remembered: bcrypt looks at the first 72 bytes alone, so that a user may have
/// more than one.
const REMEMBERED: usize = 64;
/// Checks that wait at a time, the one under way included.
const WAITING: usize = 16;
/// Of these, those of one client.
const WAITING_OF_ONE: usize = 4;
/// A check with this cost takes about five seconds; each more doubles it.
const HIGHEST_COST: u32 = 16;

/// A bcrypt hash. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash {
    text: String,
    cost: u32,
}

/// It is no hash that can be used; the message holds nothing of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HashError {
    /// It is something else.
    #[error("is not a bcrypt hash; make one with `htpasswd -nBC 10 \"\"`")]
    Malformed,
    /// To check it takes too long.
    #[error("has the cost {cost}, with which one check takes {}; use 10 to 14", time_for(*cost))]
    Expensive {
        /// Its cost.
        cost: u32,
    },
}

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::web) enum Verdict {
    /// It may see the site.
    Welcome,
    /// It has no password, or a wrong one.
    Refused,
    /// Too many are waiting for theirs to be checked.
    Busy,
}

/// Checks users and passwords.
pub(super) struct Passwords {
    users: BTreeMap<String, PasswordHash>,
    /// Checked where the user is unknown, so that the time does not tell.
    decoy: PasswordHash,
    check: Check,
    key: hmac::Key,
    right: Arc<Remembered>,
    turn: Arc<Semaphore>,
    queue: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The pairs that were right, the oldest first.
#[derive(Default)]
struct Remembered(Mutex<VecDeque<hmac::Tag>>);

/// Whether a password belongs to a hash; slow.
type Check = Arc<dyn Fn(&Secret, &PasswordHash) -> bool + Send + Sync>;

/// A place in the queue.
struct Place {
    queue: Arc<Mutex<HashMap<IpAddr, usize>>>,
    client: IpAddr,
}

// === impl Passwords ===

impl Passwords {
    pub(super) fn new(users: BTreeMap<String, PasswordHash>) -> Self {
        let check = |password: &Secret, hash: &PasswordHash| {
            bcrypt::verify(password.expose(), &hash.text).unwrap_or(false)
        };
        Self::checked_by(users, Arc::new(check))
    }

    fn checked_by(users: BTreeMap<String, PasswordHash>, check: Check) -> Self {
        let cost = users.values().map(|hash| hash.cost).max().unwrap_or(10);
        Self {
            users,
            decoy: PasswordHash::decoy(cost),
            check,
            key: hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
                .expect("a system without randomness has no TLS either"),
            right: Arc::default(),
            turn: Arc::new(Semaphore::new(1)),
            queue: Arc::default(),
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
        if self.right.contains(&tag) {
            return Verdict::Welcome;
        }
        let Some(_place) = self.queue_up(client) else {
            return Verdict::Busy;
        };
        // It is never closed.
        let Ok(turn) = Arc::clone(&self.turn).acquire_owned().await else {
            return Verdict::Busy;
        };
        // While we waited, somebody else may have come with the same.
        if self.right.contains(&tag) {
            return Verdict::Welcome;
        }
        let (tell, told) = oneshot::channel();
        let (check, hash, known) = (Arc::clone(&self.check), hash.clone(), known.is_some());
        let remembered = Arc::clone(&self.right);
        // The turn is the check's own: a client that leaves does not make room for another one. And
        // what it found is remembered before whoever comes next looks for it.
        tokio::task::spawn_blocking(move || {
            let begun = Instant::now();
            let right = check(&password, &hash) && known;
            if right {
                remembered.add(tag);
            }
            // Who asked may have left.
            tell.send(right).ok();
            if !right {
                std::thread::sleep(begun.elapsed());
            }
            drop(turn);
        });
        if told.await == Ok(true) {
            Verdict::Welcome
        } else {
            tracing::warn!(%client, "a client was refused: its user name or password is wrong");
            Verdict::Refused
        }
    }

    fn tag(&self, user: &str, hash: &PasswordHash, password: &Secret) -> hmac::Tag {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user, &hash.text, password.expose()] {
            context.update(&part.len().to_be_bytes());
            context.update(part.as_bytes());
        }
        context.sign()
    }

    fn queue_up(&self, client: IpAddr) -> Option<Place> {
        let client = network(client);
        let mut queue = lock(&self.queue);
        let all: usize = queue.values().sum();
        let own = queue.entry(client).or_default();
        if all >= WAITING || *own >= WAITING_OF_ONE {
            if *own == 0 {
                queue.remove(&client);
            }
            return None;
        }
        *own += 1;
        Some(Place {
            queue: Arc::clone(&self.queue),
            client,
        })
    }
}

/// User and password, where the header is well-formed.
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

/// Who counts as one client: of IPv6, a network of one site.
fn network(client: IpAddr) -> IpAddr {
    match client.to_canonical() {
        IpAddr::V6(address) => {
            let prefix = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(prefix.into())
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that runs under these locks can panic half-way.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

// === impl Remembered ===

impl Remembered {
    fn contains(&self, tag: &hmac::Tag) -> bool {
        let tags = lock(&self.0);
        tags.iter().any(|other| other.as_ref() == tag.as_ref())
    }

    fn add(&self, tag: hmac::Tag) {
        let mut tags = lock(&self.0);
        if tags.len() >= REMEMBERED {
            tags.pop_front();
        }
        tags.push_back(tag);
    }
}

// === impl Place ===

impl Drop for Place {
    fn drop(&mut self) {
        let mut queue = lock(&self.queue);
        if let Some(own) = queue.get_mut(&self.client) {
            *own -= 1;
            if *own == 0 {
                queue.remove(&self.client);
            }
        }
    }
}

// === impl PasswordHash ===

impl PasswordHash {
    /// A hash that nobody has a password for, as slow to check as others of this cost.
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

/// About how long a check takes.
fn time_for(cost: u32) -> &'static str {
    match cost {
        ..=17 => "ten seconds",
        18..=20 => "a minute",
        _ => "minutes or hours",
    }
}

#[cfg(test)]
mod tests;
