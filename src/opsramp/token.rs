//! The token of an account: obtained by one request at a time, cached, renewed before it runs
//! out, and asked for once more where the API no longer accepts it.
//!
//! OpsRamp seems to share one token among all who use a key and to tell its *remaining* life, so
//! asking again can bring the same token back. A token that came back unchanged is not asked for
//! again until it has run out.

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::error::Error;
use crate::secret::Secret;

/// A renewal begins when this part of the life is left, …
const MARGIN: f64 = 0.1;
/// … give or take this part of the margin, so that replicas do not ask together, …
const MARGIN_JITTER: f64 = 0.5;
/// … and never earlier than so long before the end.
const MAX_MARGIN: Duration = Duration::from_secs(5 * 60);
/// The first pause after a failed request; it doubles up to [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failed requests.
const MAX_PAUSE: Duration = Duration::from_secs(5 * 60);
/// A token that was refused although it is new is not replaced sooner.
const REFUSAL_PAUSE: Duration = Duration::from_secs(30);

/// The same for whom a new token did not help, while others have it accepted: they lack a right.
const RIGHTS_PAUSE: Duration = Duration::from_secs(10 * 60);

/// What the token endpoint answered.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) token: Secret,
    /// How long the token still lives.
    pub(super) life: Duration,
    /// The scope, where the answer tells.
    pub(super) scope: Option<String>,
    /// How long the request took.
    pub(super) took: Duration,
}

/// The credentials a request is made with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) id: Secret,
    pub(super) secret: Secret,
}

/// Asks for tokens: reads the credentials, and makes the request.
pub(super) trait Issuer: Send + Sync {
    /// The credentials as they are now.
    fn credentials(&self) -> impl Future<Output = Result<Credentials, Error>> + Send;
    /// One request.
    fn request(
        &self,
        credentials: &Credentials,
    ) -> impl Future<Output = Result<Grant, Error>> + Send;
}

/// A token in use.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) secret: Secret,
    expires_at: Instant,
    renew_at: Instant,
    scope: Option<Arc<str>>,
    took: Duration,
}

/// The cache of one account.
#[derive(Debug)]
pub(super) struct Tokens<I> {
    issuer: I,
    /// Held while a request is under way.
    turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Token>,
    /// The last failure, until it may be tried again.
    failure: Option<Failure>,
    /// A token that was refused and came back unchanged, with the credentials that brought it.
    unchanged: Option<(Secret, Credentials)>,
    /// When a refused token was last replaced, unless its successor has been accepted since.
    replaced_at: Option<Instant>,
    /// The same by who had refused it, unless they have accepted one since.
    replaced_for: HashMap<Refuser, Instant>,
    /// Whether the current token has been accepted.
    is_accepted: bool,
}

/// Who refuses a token: an endpoint, for a tenant.
pub(super) type Refuser = (&'static str, Box<str>);

#[derive(Debug)]
struct Failure {
    error: Error,
    credentials: Option<Credentials>,
    pause: Duration,
    until: Instant,
}

// === impl Tokens ===

impl<I: Issuer> Tokens<I> {
    pub(super) fn new(issuer: I) -> Self {
        Self {
            issuer,
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::default(),
        }
    }

    /// A token that has not run out, requested where there is none. While one still lives, a
    /// renewal that fails or is under way for somebody else costs nothing.
    pub(super) async fn get(&self) -> Result<Token, Error> {
        let now = Instant::now();
        let current = self.state().current.clone();
        match current {
            Some(token) if now < token.renew_at => Ok(token),
            Some(token) if now < token.expires_at => {
                let Ok(_turn) = self.turn.try_lock() else {
                    return Ok(token);
                };
                // A lost renewal is repeated at the next call, after the failure's pause.
                Ok(self.request_unless_failing().await.unwrap_or(token))
            }
            _ => {
                let _turn = self.turn.lock().await;
                let current = self.state().current.clone();
                match current {
                    Some(token) if Instant::now() < token.expires_at => Ok(token),
                    _ => self.request_unless_failing().await,
                }
            }
        }
    }

    /// Says that the API refused `token`. Brings another one to try once, or `None` where there
    /// is none to be had.
    pub(super) async fn replace(
        &self,
        token: &Token,
        refuser: Refuser,
    ) -> Result<Option<Token>, Error> {
        let _turn = self.turn.lock().await;
        let credentials = self.issuer.credentials().await?;
        {
            let state = self.state();
            if let Some(current) = &state.current
                && current.secret != token.secret
            {
                return Ok(Some(current.clone()));
            }
            if state
                .unchanged
                .as_ref()
                .is_some_and(|(unchanged, brought_by)| {
                    *unchanged == token.secret && *brought_by == credentials
                })
                && Instant::now() < token.expires_at
            {
                return Ok(None);
            }
            if state
                .replaced_at
                .is_some_and(|at| at.elapsed() < REFUSAL_PAUSE)
            {
                return Ok(None);
            }
            let pause = if state.is_accepted {
                RIGHTS_PAUSE
            } else {
                REFUSAL_PAUSE
            };
            let last = state.replaced_for.get(&refuser);
            if last.is_some_and(|at| at.elapsed() < pause) {
                return Ok(None);
            }
        }
        let next = self.request_unless_failing().await?;
        let mut state = self.state();
        state.replaced_for.insert(refuser, Instant::now());
        if next.secret == token.secret {
            state.unchanged = Some((next.secret, credentials));
            return Ok(None);
        }
        state.unchanged = None;
        state.replaced_at = Some(Instant::now());
        Ok(Some(next))
    }

    /// Says that the API accepted `token`, though it might have been a refuser.
    pub(super) fn accepted(&self, token: &Token, endpoint: &'static str, tenant: &str) {
        let mut state = self.state();
        if !state.replaced_for.is_empty() {
            state.replaced_for.remove(&(endpoint, tenant.into()));
        }
        if (state.replaced_at.is_some() || !state.is_accepted)
            && state
                .current
                .as_ref()
                .is_some_and(|current| current.secret == token.secret)
        {
            state.replaced_at = None;
            state.is_accepted = true;
        }
    }

    /// Makes a request, unless the last one failed too short a time ago. Called with the turn held.
    async fn request_unless_failing(&self) -> Result<Token, Error> {
        let credentials = self.issuer.credentials().await;
        let pause = {
            let state = self.state();
            match &state.failure {
                // New credentials need not wait for what happened to the old ones.
                Some(failure)
                    if failure.credentials.as_ref() == credentials.as_ref().ok()
                        && Instant::now() < failure.until =>
                {
                    return Err(Error::Echo(Arc::new(failure.error.clone())));
                }
                Some(failure) => (failure.pause * 2).min(MAX_PAUSE),
                None => FIRST_PAUSE,
            }
        };
        let answer = match &credentials {
            Ok(credentials) => self.issuer.request(credentials).await,
            Err(error) => Err(error.clone()),
        };
        let now = Instant::now();
        let mut state = self.state();
        match answer {
            Ok(grant) => {
                let unchanged = state
                    .current
                    .as_ref()
                    .is_some_and(|current| current.secret == grant.token);
                let token = Token::new(grant, unchanged, now);
                state.current = Some(token.clone());
                state.is_accepted &= unchanged;
                state.failure = None;
                Ok(token)
            }
            Err(error) => {
                let jittered = pause.mul_f64(1.0 - 0.25 * fastrand::f64());
                let asked = match &error {
                    Error::Throttled {
                        retry_after: Some(wait),
                    } => *wait,
                    _ => Duration::ZERO,
                };
                state.failure = Some(Failure {
                    error: error.clone(),
                    credentials: credentials.ok(),
                    pause,
                    until: now + jittered.max(asked),
                });
                Err(error)
            }
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        // The lock is held for plain assignments only, so a poisoned state is still whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// === impl Token ===

impl Token {
    fn new(grant: Grant, unchanged: bool, now: Instant) -> Self {
        let expires_at = now + grant.life;
        let margin = grant.life.mul_f64(MARGIN).min(MAX_MARGIN);
        let margin = margin.mul_f64(1.0 + MARGIN_JITTER * (fastrand::f64() - 0.5));
        Self {
            secret: grant.token,
            expires_at,
            renew_at: if unchanged {
                expires_at
            } else {
                expires_at - margin
            },
            scope: grant.scope.map(Arc::from),
            took: grant.took,
        }
    }

    /// How long it still lives.
    pub(super) fn remaining(&self) -> Duration {
        self.expires_at.saturating_duration_since(Instant::now())
    }

    /// How long its request took.
    pub(super) fn took(&self) -> Duration {
        self.took
    }

    /// Its scope, where the endpoint told.
    pub(super) fn scope(&self) -> Option<&str> {
        self.scope.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;

    /// Every token is another one.
    #[derive(Debug, Default)]
    struct Counter(AtomicU64);

    impl Issuer for &Counter {
        async fn credentials(&self) -> Result<Credentials, Error> {
            Ok(Credentials {
                id: Secret::new("key".to_owned()),
                secret: Secret::new("secret".to_owned()),
            })
        }

        async fn request(&self, _: &Credentials) -> Result<Grant, Error> {
            let number = self.0.fetch_add(1, Ordering::Relaxed);
            Ok(Grant {
                token: Secret::new(format!("token {number}")),
                life: Duration::from_secs(7200),
                scope: None,
                took: Duration::ZERO,
            })
        }
    }

    /// Asks for a tenant, and once more where a new token is to be had; `Err` where both are refused.
    async fn ask(tokens: &Tokens<&Counter>, tenant: &str, may: bool) {
        let token = tokens.get().await.unwrap();
        if may {
            tokens.accepted(&token, "search", tenant);
        } else {
            let refuser = ("search", tenant.into());
            tokens.replace(&token, refuser).await.unwrap();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_tenant_that_is_refused_whatever_the_token_costs_the_others_none() {
        let issuer = Counter::default();
        let tokens = Tokens::new(&issuer);
        for _ in 0..100 {
            ask(&tokens, "client_1", true).await;
            ask(&tokens, "client_2", false).await;
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert_eq!(issuer.0.load(Ordering::Relaxed), 2);
        // Where the others are refused as well, it is the token.
        ask(&tokens, "client_1", false).await;
        assert_eq!(issuer.0.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_alone_has_the_token_replaced_now_and_then() {
        let issuer = Counter::default();
        let tokens = Tokens::new(&issuer);
        for _ in 0..100 {
            ask(&tokens, "client_1", false).await;
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        let asked = issuer.0.load(Ordering::Relaxed);
        assert!((15..=18).contains(&asked), "{asked}");
    }
}
