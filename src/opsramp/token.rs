//! The token of an account: obtained by one request at a time, cached, renewed before it runs out,
//! and requested once more if the API no longer accepts it.
//!
//! OpsRamp seems to share one token among all users of a key, and to state its *remaining* life.
//! So another request can bring the same token back. If a refused token comes back unchanged, the
//! next request waits for a pause: the token may have died without the endpoint knowing it yet.

use std::{collections::HashMap, future::Future, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::error::Error;
use crate::secret::Secret;

/// The part of a token's life that is left when its renewal begins (the margin).
const MARGIN: f64 = 0.1;
/// The part of the margin over which renewals are spread, so that replicas do not ask together.
const MARGIN_JITTER: f64 = 0.5;
/// The longest margin, before the jitter.
const MAX_MARGIN: Duration = Duration::from_secs(5 * 60);
/// The first pause after a failed request; it doubles up to [`OUTAGE_PAUSE`] or [`MAX_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after failures that end by themselves. Without a token, all polls of the
/// account wait.
const OUTAGE_PAUSE: Duration = Duration::from_secs(10);
/// The longest pause after failures that somebody has to mend, and after 429. A server may lock out
/// who keeps sending credentials that it rejects.
const MAX_PAUSE: Duration = Duration::from_secs(5 * 60);
/// The pause before a token is replaced again that is new but was refused, or that came back
/// unchanged. For an unchanged token the pause doubles, up to [`MAX_PAUSE`], while the API accepts
/// it from no caller.
const REFUSAL_PAUSE: Duration = Duration::from_secs(30);
/// The pause for one refuser (an endpoint, for a tenant) that refuses the new token too, while
/// others accept it: its requests lack a right, and another token would not help.
const RIGHTS_PAUSE: Duration = Duration::from_secs(10 * 60);

/// What the token endpoint answered.
#[derive(Clone, Debug)]
pub(super) struct Grant {
    pub(super) token: Secret,
    /// How long the token still lives.
    pub(super) life: Duration,
    /// The scope, if the answer states it.
    pub(super) scope: Option<String>,
    /// How long the request took.
    pub(super) took: Duration,
}

/// The credentials with which a token is requested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) id: Secret,
    pub(super) secret: Secret,
}

/// Reads the credentials, and requests tokens with them.
pub(super) trait Issuer: Send + Sync + 'static {
    /// Reads the credentials as they are now.
    fn credentials(&self) -> impl Future<Output = Result<Credentials, Error>> + Send;
    /// Makes one token request.
    fn request(
        &self,
        credentials: &Credentials,
    ) -> impl Future<Output = Result<Grant, Error>> + Send;
    /// Notes that no token could be requested because the credentials cannot be read.
    fn note_missing_credentials(&self, error: &Error);
}

/// A token in use.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) secret: Secret,
    expires_at: Instant,
    renew_at: Instant,
    /// The scope, if the endpoint stated it.
    pub(super) scope: Option<Arc<str>>,
    /// How long the token request took.
    pub(super) took: Duration,
}

/// The token cache of one account.
#[derive(Debug)]
pub(super) struct Tokens<I> {
    shared: Arc<Shared<I>>,
    /// The last renewal. It is aborted when the cache is dropped.
    renewal: Mutex<Option<AbortOnDropHandle<()>>>,
}

/// The state that renewals share with callers that need a token at once.
#[derive(Debug)]
struct Shared<I> {
    account: Arc<str>,
    issuer: I,
    /// Held while a token request is under way.
    turn: Arc<tokio::sync::Mutex<()>>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    current: Option<Token>,
    /// The last failure, unless a request has succeeded since.
    failure: Option<Failure>,
    /// A token that was refused and came back unchanged.
    unchanged: Option<Unchanged>,
    /// When a refused token was last replaced, unless its successor has been accepted since.
    replaced_at: Option<Instant>,
    /// When a token was last replaced because of each refuser, unless the refuser has accepted a
    /// token since.
    replaced_for: HashMap<Refuser, Instant>,
    /// Whether the current token has been accepted since it was last obtained.
    is_accepted: bool,
}

#[derive(Debug)]
struct Unchanged {
    secret: Secret,
    /// The credentials with which the token was requested.
    credentials: Credentials,
    at: Instant,
    pause: Duration,
}

/// Who refuses a token: an endpoint, for a tenant.
pub(super) type Refuser = (&'static str, Box<str>);

#[derive(Debug)]
struct Failure {
    error: Error,
    credentials: Option<Credentials>,
    at: Instant,
    pause: Duration,
    until: Instant,
}

// === impl Tokens ===

impl<I: Issuer> Tokens<I> {
    pub(super) fn new(account: Arc<str>, issuer: I) -> Self {
        Self {
            shared: Arc::new(Shared {
                account,
                issuer,
                turn: Arc::default(),
                state: Mutex::default(),
            }),
            renewal: Mutex::default(),
        }
    }

    /// Returns a token that has not run out. Requests one if there is none. While a token lives,
    /// it is renewed in the background, and no caller waits for the renewal.
    pub(super) async fn get(&self) -> Result<Token, Error> {
        let now = Instant::now();
        let current = self.shared.state.lock().current.clone();
        match current {
            Some(token) if now < token.expires_at => {
                if token.is_renewal_due() {
                    self.begin_renewal();
                }
                Ok(token)
            }
            _ => {
                let _turn = self.shared.turn.lock().await;
                {
                    let state = self.shared.state.lock();
                    if let Some(token) = &state.current
                        && Instant::now() < token.expires_at
                    {
                        return Ok(token.clone());
                    }
                    state.check_no_failure_since(now)?;
                }
                let credentials = self.shared.issuer.credentials().await;
                self.shared.request_unless_paused(&credentials).await
            }
        }
    }

    /// Begins a renewal in the background, unless a token request is under way. If the renewal
    /// fails, the first call after the failure's pause repeats it.
    fn begin_renewal(&self) {
        let mut last = self.renewal.lock();
        let Ok(turn) = Arc::clone(&self.shared.turn).try_lock_owned() else {
            return;
        };
        let shared = Arc::clone(&self.shared);
        *last = Some(AbortOnDropHandle::new(tokio::spawn(async move {
            shared.renew().await;
            drop(turn);
        })));
    }

    /// Records that the API refused `token`. Returns another token to try once, or `None` if no
    /// other can be had at present.
    pub(super) async fn replace(
        &self,
        token: &Token,
        refuser: Refuser,
    ) -> Result<Option<Token>, Error> {
        let now = Instant::now();
        // If the outcome is known already, the caller need not wait for a request that hangs.
        if let Some(known) = self.shared.state.lock().successor(token, &refuser) {
            return Ok(known);
        }
        let _turn = self.shared.turn.lock().await;
        // Another caller may have requested one meanwhile.
        if let Some(known) = self.shared.state.lock().successor(token, &refuser) {
            return Ok(known);
        }
        self.shared.state.lock().check_no_failure_since(now)?;
        let credentials = self.shared.issuer.credentials().await;
        let next_pause = {
            let state = self.shared.state.lock();
            let unchanged = state.unchanged.as_ref().filter(|unchanged| {
                unchanged.secret == token.secret
                    && credentials.as_ref().ok() == Some(&unchanged.credentials)
            });
            // If the API accepts the token from some caller, the doubling ends, but not the pause.
            // Otherwise, if the API accepts a token only now and then, every refusal would cost a
            // token request.
            let last = unchanged
                .filter(|_| !state.is_accepted)
                .map(|unchanged| unchanged.pause);
            let pause = last.unwrap_or(REFUSAL_PAUSE);
            if unchanged.is_some_and(|unchanged| unchanged.at.elapsed() < pause)
                && Instant::now() < token.expires_at
            {
                return Ok(None);
            }
            last.map_or(REFUSAL_PAUSE, |last| (last * 2).min(MAX_PAUSE))
        };
        let next = self.shared.request_unless_paused(&credentials).await?;
        let now = Instant::now();
        let mut state = self.shared.state.lock();
        state.replaced_for.insert(refuser, now);
        if next.secret == token.secret {
            state.unchanged = Some(Unchanged {
                secret: next.secret,
                credentials: credentials?,
                at: now,
                pause: next_pause,
            });
            return Ok(None);
        }
        state.unchanged = None;
        state.replaced_at = Some(now);
        Ok(Some(next))
    }

    /// Records that the API accepted `token` at this endpoint, for this tenant: if it was a
    /// refuser, it is one no more.
    pub(super) fn note_accepted(&self, token: &Token, endpoint: &'static str, tenant: &str) {
        let mut state = self.shared.state.lock();
        if !state.replaced_for.is_empty() {
            state.replaced_for.remove(&(endpoint, tenant.into()));
        }
        if (state.replaced_at.is_some() || !state.is_accepted)
            // A token that was sent before the same token was obtained once more does not count.
            && state.current.as_ref().is_some_and(|current| {
                current.secret == token.secret && current.expires_at == token.expires_at
            })
        {
            state.replaced_at = None;
            state.is_accepted = true;
        }
    }
}

// === impl Shared ===

impl<I: Issuer> Shared<I> {
    /// Replaces the token in use if its renewal is due. Called with the turn held.
    async fn renew(&self) {
        // Another caller may have renewed the token a moment ago.
        if !self
            .state
            .lock()
            .current
            .as_ref()
            .is_some_and(Token::is_renewal_due)
        {
            return;
        }
        // While the token lives, no caller sees a failure of the renewal. So it is logged here.
        let credentials = self.issuer.credentials().await;
        if let Err(error) = self.request_unless_paused(&credentials).await
            && !error.is_echo()
        {
            tracing::warn!(
                account = %self.account,
                error = %error.chain(),
                "the token could not be renewed; the one in use serves until its end"
            );
        }
    }

    /// Makes a token request, unless the pause after the last failure is not over. Called with the
    /// turn held.
    async fn request_unless_paused(
        &self,
        credentials: &Result<Credentials, Error>,
    ) -> Result<Token, Error> {
        let doubled = {
            let state = self.state.lock();
            match &state.failure {
                // The pause holds for the credentials that failed. New ones need not wait.
                Some(failure)
                    if failure.credentials.as_ref() == credentials.as_ref().ok()
                        && Instant::now() < failure.until =>
                {
                    // If the credentials cannot be read, the reason may have changed since the
                    // last failure.
                    let error = credentials.as_ref().err().unwrap_or(&failure.error);
                    return Err(Error::Echo(Arc::new(error.clone())));
                }
                Some(failure) => failure.pause * 2,
                None => FIRST_PAUSE,
            }
        };
        let answer = match credentials {
            Ok(credentials) => self.issuer.request(credentials).await,
            Err(error) => {
                self.issuer.note_missing_credentials(error);
                Err(error.clone())
            }
        };
        let now = Instant::now();
        let mut state = self.state.lock();
        match answer {
            Ok(grant) => {
                // The endpoint handed out the same token although its renewal was due: it has no
                // other before this one ends, so do not ask sooner. A token that comes back after a
                // refusal, before its renewal was due, keeps its margin.
                let is_shared = state.current.as_ref().is_some_and(|current| {
                    current.secret == grant.token && current.renew_at <= now
                });
                let token = Token::new(grant, is_shared, now);
                state.current = Some(token.clone());
                state.is_accepted = false;
                state.failure = None;
                Ok(token)
            }
            Err(error) => {
                let pause = doubled.min(longest_pause(&error));
                let jittered = pause.mul_f64(1.0 - 0.25 * fastrand::f64());
                let retry_after = match &error {
                    Error::Throttled {
                        retry_after: Some(wait),
                    } => *wait,
                    _ => Duration::ZERO,
                };
                state.failure = Some(Failure {
                    error: error.clone(),
                    credentials: credentials.as_ref().ok().cloned(),
                    at: now,
                    pause,
                    until: now + jittered.max(retry_after),
                });
                Err(error)
            }
        }
    }
}

fn longest_pause(error: &Error) -> Duration {
    let is_outage = error.is_transient() && !matches!(error, Error::Throttled { .. });
    if is_outage { OUTAGE_PAUSE } else { MAX_PAUSE }
}

// === impl State ===

impl State {
    /// Returns the last failure as an error if it happened after `began`. So all callers that
    /// waited for a request share its failure. If each caller tried anew, and the credentials did
    /// not come, the last of many callers would wait for all these tries.
    fn check_no_failure_since(&self, began: Instant) -> Result<(), Error> {
        match &self.failure {
            Some(failure) if failure.at > began => {
                Err(Error::Echo(Arc::new(failure.error.clone())))
            }
            _ => Ok(()),
        }
    }

    /// Returns the successor of a token that this refuser refused, if it has been obtained
    /// already, or no token if it is too early to request one. `None` if one has to be requested.
    fn successor(&self, token: &Token, refuser: &Refuser) -> Option<Option<Token>> {
        if let Some(current) = &self.current
            && current.secret != token.secret
        {
            return Some(Some(current.clone()));
        }
        let pause = if self.is_accepted {
            RIGHTS_PAUSE
        } else {
            REFUSAL_PAUSE
        };
        let within = |at: Option<&Instant>, pause| at.is_some_and(|at| at.elapsed() < pause);
        let is_early = within(self.replaced_at.as_ref(), REFUSAL_PAUSE)
            || within(self.replaced_for.get(refuser), pause);
        is_early.then_some(None)
    }
}

// === impl Token ===

impl Token {
    fn new(grant: Grant, is_shared: bool, now: Instant) -> Self {
        let expires_at = now + grant.life;
        let margin = grant.life.mul_f64(MARGIN).min(MAX_MARGIN);
        let margin = margin.mul_f64(1.0 + MARGIN_JITTER * (fastrand::f64() - 0.5));
        Self {
            secret: grant.token,
            expires_at,
            renew_at: if is_shared {
                expires_at
            } else {
                expires_at - margin
            },
            scope: grant.scope.map(Arc::from),
            took: grant.took,
        }
    }

    /// Returns how long the token still lives.
    pub(super) fn remaining(&self) -> Duration {
        self.expires_at.saturating_duration_since(Instant::now())
    }

    /// Whether it is time to obtain another token.
    pub(super) fn is_renewal_due(&self) -> bool {
        self.renew_at <= Instant::now()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logging::captured;

    /// A token endpoint whose tokens live for two hours.
    #[derive(Clone, Debug, Default)]
    struct Server(Arc<Mutex<Conduct>>);

    #[derive(Debug, Default)]
    struct Conduct {
        asked: u64,
        /// The token that is handed out each time. If `None`, every token is a new one.
        gives: Option<&'static str>,
        /// Whether the server does not answer.
        hangs: bool,
        /// How long the server takes to answer.
        takes: Duration,
        /// With what every request fails.
        fails: Option<Error>,
        /// The secret in its file.
        secret: &'static str,
        /// Whether the files of the credentials cannot be read in time.
        is_without_credentials: bool,
        /// Why not.
        reason: &'static str,
        /// How often the lack of credentials was noted.
        lacked: u64,
    }

    impl Server {
        fn conduct(&self) -> parking_lot::MutexGuard<'_, Conduct> {
            self.0.lock()
        }

        fn asked(&self) -> u64 {
            self.conduct().asked
        }

        fn tokens(&self) -> Tokens<Self> {
            Tokens::new("acme".into(), self.clone())
        }
    }

    impl Issuer for Server {
        async fn credentials(&self) -> Result<Credentials, Error> {
            if self.conduct().is_without_credentials {
                tokio::time::sleep(Duration::from_secs(5)).await;
                return Err(Error::auth(self.conduct().reason.to_owned()));
            }
            Ok(Credentials {
                id: Secret::new("key".to_owned()),
                secret: Secret::new(self.conduct().secret),
            })
        }

        async fn request(&self, _: &Credentials) -> Result<Grant, Error> {
            let (token, hangs, takes, fails) = {
                let mut conduct = self.conduct();
                conduct.asked += 1;
                let new = || format!("token {}", conduct.asked);
                let token = conduct.gives.map_or_else(new, str::to_owned);
                (token, conduct.hangs, conduct.takes, conduct.fails.clone())
            };
            if hangs {
                std::future::pending::<()>().await;
            }
            if !takes.is_zero() {
                tokio::time::sleep(takes).await;
            }
            if let Some(error) = fails {
                return Err(error);
            }
            Ok(Grant {
                token: Secret::new(token),
                life: Duration::from_secs(7200),
                scope: None,
                took: Duration::ZERO,
            })
        }

        fn note_missing_credentials(&self, _: &Error) {
            self.conduct().lacked += 1;
        }
    }

    async fn ask(tokens: &Tokens<Server>, tenant: &str, may: impl Fn(&Secret) -> bool) -> bool {
        ask_at(tokens, "search", tenant, may).await
    }

    /// Asks the API for a tenant, and once more if a new token can be had. The API accepts tokens
    /// for which `may` is true. Returns whether a token was accepted.
    async fn ask_at(
        tokens: &Tokens<Server>,
        endpoint: &'static str,
        tenant: &str,
        may: impl Fn(&Secret) -> bool,
    ) -> bool {
        let mut token = tokens.get().await.unwrap();
        if !may(&token.secret) {
            let refuser = (endpoint, tenant.into());
            match tokens.replace(&token, refuser).await.unwrap() {
                Some(next) => token = next,
                None => return false,
            }
        }
        let is_accepted = may(&token.secret);
        if is_accepted {
            tokens.note_accepted(&token, endpoint, tenant);
        }
        is_accepted
    }

    #[tokio::test(start_paused = true)]
    async fn an_endpoint_or_tenant_that_is_refused_whatever_the_token_costs_the_others_none() {
        let server = Server::default();
        let tokens = server.tokens();
        for _ in 0..100 {
            ask(&tokens, "client_1", |_| true).await;
            ask(&tokens, "client_2", |_| false).await;
            ask_at(&tokens, "alert", "client_1", |_| false).await;
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert_eq!(server.asked(), 1 + 2);
        // If the others are refused as well, the token is the cause.
        ask(&tokens, "client_1", |_| false).await;
        assert_eq!(server.asked(), 1 + 2 + 1);
    }

    /// How many tokens are asked for if the API refuses each of them to these tenants, every five
    /// seconds.
    async fn asked_for(tenants: &[&str]) -> u64 {
        let server = Server::default();
        let tokens = server.tokens();
        for _ in 0..100 {
            for tenant in tenants {
                assert!(!ask(&tokens, tenant, |_| false).await);
            }
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        server.asked()
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_refuses_all_tenants_costs_no_more_tokens_than_one_that_refuses_one() {
        let tenants = ["client_1", "client_2", "client_3", "client_4"];
        let asked = asked_for(&tenants).await;
        assert!((15..=18).contains(&asked), "{asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn tokens_that_are_revoked_one_after_the_other_are_each_replaced_at_once() {
        let server = Server::default();
        let tokens = server.tokens();
        for number in 1..10 {
            let valid = format!("token {number}");
            assert!(ask(&tokens, "client_1", |token| token.expose() == valid).await);
            tokio::time::advance(Duration::from_secs(1)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_need_a_token_at_the_same_time_share_one_request() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().takes = Duration::from_secs(1);
        let may = |token: &Secret| token.expose() == "token 2";
        let accepted = tokio::join!(
            ask(&tokens, "client_1", may),
            ask(&tokens, "client_2", may),
            ask(&tokens, "client_1", may),
        );
        assert_eq!((accepted, server.asked()), ((true, true, true), 2));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_a_token_that_is_replaced_already_waits_for_no_request() {
        let server = Server::default();
        let tokens = server.tokens();
        let first = tokens.get().await.unwrap();
        assert!(ask(&tokens, "client_1", |token| *token != first.secret).await);
        server.conduct().hangs = true;
        let hangs = ask(&tokens, "client_2", |_| false);
        let late = async {
            let next = tokens.replace(&first, ("search", "client_3".into())).await;
            next.unwrap().unwrap().secret
        };
        tokio::select! {
            biased;
            _ = hangs => panic!("nobody answers"),
            next = late => assert_eq!(next.expose(), "token 2"),
        }
        assert_eq!(server.asked(), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_refused_alone_has_the_token_replaced_now_and_then() {
        let asked = asked_for(&["client_1"]).await;
        assert!((15..=18).contains(&asked), "{asked}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_revoked_token_that_is_handed_out_once_more_is_asked_for_again_in_minutes() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().gives = Some("old");
        assert!(ask(&tokens, "client_1", |_| true).await);
        let may = |token: &Secret| token.expose() == "new";
        let began = Instant::now();
        for _ in 0..360 {
            assert!(!ask(&tokens, "client_1", may).await);
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        // At once, after 30 s, and with pauses that double up to five minutes.
        assert_eq!(server.asked(), 1 + 9);
        server.conduct().gives = Some("new");
        let mended = Instant::now();
        while !ask(&tokens, "client_1", may).await {
            tokio::time::advance(Duration::from_secs(5)).await;
        }
        assert!(mended.elapsed() <= MAX_PAUSE, "{:?}", mended.elapsed());
        assert!(began.elapsed() < Duration::from_secs(7200) - MAX_MARGIN);
    }

    #[tokio::test(start_paused = true)]
    async fn new_credentials_and_a_token_that_is_accepted_again_end_the_long_pauses() {
        for has_new_credentials in [true, false] {
            let server = Server::default();
            let tokens = server.tokens();
            server.conduct().gives = Some("old");
            while server.asked() < 7 {
                assert!(!ask(&tokens, "client_1", |_| false).await);
                tokio::time::advance(Duration::from_secs(1)).await;
            }
            tokio::time::advance(REFUSAL_PAUSE).await;
            if has_new_credentials {
                server.conduct().secret = "rotated";
            } else {
                assert!(ask(&tokens, "client_1", |_| true).await);
            }
            server.conduct().gives = Some("new");
            assert!(ask(&tokens, "client_1", |token| token.expose() == "new").await);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_to_a_request_from_before_a_token_came_back_does_not_count_for_it() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().gives = Some("old");
        let sent = tokens.get().await.unwrap();
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!ask(&tokens, "client_1", |_| false).await);
        tokens.note_accepted(&sent, "search", "client_2");
        server.conduct().gives = Some("new");
        tokio::time::advance(REFUSAL_PAUSE).await;
        assert!(ask(&tokens, "client_1", |token| token.expose() == "new").await);
    }

    /// Needs a token all the time until one is requested. Returns how long that takes.
    async fn until_asked(server: &Server, tokens: &Tokens<Server>) -> Duration {
        let (asked, began) = (server.asked(), Instant::now());
        loop {
            tokens.get().await.ok();
            if server.asked() > asked {
                return began.elapsed();
            }
            tokio::time::advance(Duration::from_millis(100)).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn after_failures_requests_pause_longer_and_longer_or_as_long_as_the_server_asks() {
        let server = Server::default();
        let tokens = server.tokens();
        let throttled = |seconds: Option<u64>| {
            let retry_after = seconds.map(Duration::from_secs);
            Some(Error::Throttled { retry_after })
        };
        server.conduct().fails = throttled(None);
        until_asked(&server, &tokens).await;
        for longest in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            let pause = until_asked(&server, &tokens).await.as_secs_f64();
            let longest = f64::from(longest);
            assert!((0.75 * longest..longest + 0.2).contains(&pause), "{pause}");
        }
        // New credentials may be better.
        server.conduct().fails = throttled(Some(1000));
        server.conduct().secret = "rotated";
        assert_eq!(until_asked(&server, &tokens).await, Duration::ZERO);
        server.conduct().fails = throttled(Some(1));
        assert_eq!(until_asked(&server, &tokens).await.as_secs(), 1000);
        assert!(until_asked(&server, &tokens).await.as_secs() >= 225);
        // An outage ends by itself.
        server.conduct().fails = Some(Error::Http {
            endpoint: "token",
            status: 503,
            excerpt: String::new(),
        });
        until_asked(&server, &tokens).await;
        for _ in 0..3 {
            let pause = until_asked(&server, &tokens).await.as_secs_f64();
            assert!((7.5..10.2).contains(&pause), "{pause}");
        }
        // A success ends the long pauses.
        server.conduct().fails = None;
        until_asked(&server, &tokens).await;
        tokio::time::advance(Duration::from_secs(7200)).await;
        server.conduct().fails = throttled(None);
        until_asked(&server, &tokens).await;
        assert!(until_asked(&server, &tokens).await <= Duration::from_secs(1));
    }

    #[tokio::test(start_paused = true)]
    async fn renewals_are_spread_around_the_last_tenth_of_a_life_or_its_last_five_minutes() {
        let now = Instant::now();
        for (life, margin) in [(20, 2.0), (7200, 300.0)] {
            let grant = Grant {
                token: Secret::new("a"),
                life: Duration::from_secs(life),
                scope: None,
                took: Duration::ZERO,
            };
            let mut margins: Vec<f64> = (0..1000)
                .map(|_| Token::new(grant.clone(), false, now))
                .map(|token| (token.expires_at - token.renew_at).as_secs_f64() / margin)
                .collect();
            margins.sort_by(f64::total_cmp);
            let (least, most) = (margins[0], margins[999]);
            assert!((0.749..0.8).contains(&least), "{least}");
            assert!((1.2..1.251).contains(&most), "{most}");
        }
    }

    /// Whether the token is renewed a minute before its end.
    async fn is_renewed(server: &Server, tokens: &Tokens<Server>) -> bool {
        let left = tokens.get().await.unwrap().remaining();
        tokio::time::advance(left - Duration::from_secs(60)).await;
        let asked = server.asked();
        tokens.get().await.unwrap();
        tokio::task::yield_now().await;
        server.asked() > asked
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_that_comes_back_at_its_renewal_serves_to_its_end_and_any_other_does_not() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().gives = Some("shared");
        assert!(is_renewed(&server, &tokens).await);
        assert!(!is_renewed(&server, &tokens).await);
        tokio::time::advance(Duration::from_secs(60)).await;
        server.conduct().gives = None;
        assert!(is_renewed(&server, &tokens).await);
        assert!(is_renewed(&server, &tokens).await);
        // One that comes back only because it was refused is not at its renewal.
        tokio::time::advance(Duration::from_secs(7200)).await;
        server.conduct().gives = Some("refused");
        assert!(!ask(&tokens, "client_1", |_| false).await);
        assert!(is_renewed(&server, &tokens).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_fails_is_told_though_no_caller_sees_it() {
        let server = Server::default();
        let tokens = server.tokens();
        let first = tokens.get().await.unwrap();
        tokio::time::advance(Duration::from_secs(7200 - 60)).await;
        server.conduct().fails = Some(Error::Throttled { retry_after: None });
        let (lines, _logging) = captured();
        assert_eq!(at_once(&tokens).await, first.secret);
        tokio::task::yield_now().await;
        let lines = lines.lock().clone();
        assert!(
            lines.len() == 1 && lines[0].contains("could not be renewed"),
            "{lines:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_that_passes_does_not_keep_a_token_that_is_revoked_later() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().gives = Some("old");
        assert!(ask(&tokens, "client_1", |_| true).await);
        assert!(!ask(&tokens, "client_1", |_| false).await);
        assert!(ask(&tokens, "client_1", |_| true).await);
        // Nor does the refusal of a tenant that lacks a right.
        for _ in 0..100 {
            assert!(!ask(&tokens, "client_2", |_| false).await);
            assert!(ask(&tokens, "client_1", |_| true).await);
            tokio::time::advance(Duration::from_secs(10)).await;
        }
        let asked = server.asked();
        assert!(asked <= 1 + 1 + 2, "{asked}");
        server.conduct().gives = Some("new");
        let revoked = Instant::now();
        while !ask(&tokens, "client_1", |token| token.expose() == "new").await {
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(revoked.elapsed() <= REFUSAL_PAUSE);
    }

    #[tokio::test(start_paused = true)]
    async fn an_api_that_takes_a_token_now_and_then_does_not_have_it_asked_for_each_time() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().gives = Some("shared");
        for _ in 0..600 {
            for tenant in ["client_1", "client_2"] {
                ask(&tokens, tenant, |_| false).await;
                ask(&tokens, tenant, |_| true).await;
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let asked = server.asked();
        assert!(asked <= 1 + 600 / 30, "{asked}");
    }

    async fn at_once(tokens: &Tokens<Server>) -> Secret {
        let get = tokio::time::timeout(Duration::from_millis(1), tokens.get());
        get.await.unwrap().unwrap().secret
    }

    #[tokio::test(start_paused = true)]
    async fn a_renewal_that_hangs_holds_up_nobody_while_the_token_lives_and_ends_with_its_account()
    {
        let server = Server::default();
        let tokens = server.tokens();
        let first = tokens.get().await.unwrap();
        tokio::time::advance(Duration::from_secs(7200 - 60)).await;
        server.conduct().hangs = true;
        for _ in 0..10 {
            assert_eq!(at_once(&tokens).await, first.secret);
            tokio::task::yield_now().await;
        }
        assert_eq!(server.asked(), 2);
        drop(tokens);
        tokio::task::yield_now().await;
        assert_eq!(Arc::strong_count(&server.0), 1, "the renewal still runs");
    }

    #[tokio::test(start_paused = true)]
    async fn credentials_that_do_not_come_hold_up_nobody_while_the_token_lives() {
        let server = Server::default();
        let tokens = server.tokens();
        let first = tokens.get().await.unwrap();
        tokio::time::advance(Duration::from_secs(7200 - 60)).await;
        server.conduct().is_without_credentials = true;
        for _ in 0..30 {
            assert_eq!(at_once(&tokens).await, first.secret);
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        server.conduct().is_without_credentials = false;
        // First the renewal under way fails, then the next one is made.
        for _ in 0..2 {
            tokens.get().await.unwrap();
            tokio::time::sleep(Duration::from_secs(6)).await;
        }
        assert_ne!(tokens.get().await.unwrap().secret, first.secret);
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_wait_for_credentials_that_do_not_come_wait_for_them_once() {
        let server = Server::default();
        let tokens = server.tokens();
        server.conduct().is_without_credentials = true;
        let began = Instant::now();
        let (first, second, third) = tokio::join!(tokens.get(), tokens.get(), tokens.get());
        assert_eq!(began.elapsed().as_secs(), 5);
        let echoes = [first, second, third].map(|got| got.unwrap_err().is_echo());
        assert_eq!(echoes, [false, true, true]);
        assert_eq!(server.conduct().lacked, 1);
        for lacked in 2..7 {
            tokio::time::sleep(Duration::from_secs(300)).await;
            assert!(!tokens.get().await.unwrap_err().is_echo());
            assert_eq!(server.conduct().lacked, lacked);
        }
        // The reason may be another one by now, and that one is told.
        server.conduct().reason = "it is empty";
        let error = tokens.get().await.unwrap_err();
        assert!(error.is_echo(), "{error:?}");
        assert!(error.chain().contains("it is empty"), "{error:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_are_refused_while_credentials_do_not_come_wait_for_them_once() {
        let server = Server::default();
        let tokens = server.tokens();
        let token = tokens.get().await.unwrap();
        server.conduct().is_without_credentials = true;
        let began = Instant::now();
        let replace = |tenant: &str| tokens.replace(&token, ("search", tenant.into()));
        let (first, second) = tokio::join!(replace("client_1"), replace("client_2"));
        assert_eq!(began.elapsed().as_secs(), 5);
        let echoes = [first, second].map(|got| got.unwrap_err().is_echo());
        assert_eq!(echoes, [false, true]);
    }
}
