//! Accounts and their tenants.

use std::{collections::HashSet, sync::Arc};

use super::{LONGEST_NAME, NOT_EXPANDED_THERE, Resolver};
use crate::{
    config::{Account, file, problem::shown_value, url},
    identity::Tenant,
    opsramp::{self, ProxyUrl, TOKEN_PATH, TlsOptions},
    secret::{REDACTED, Secret, SecretSource, is_variable},
    status::listed,
};

const DEFAULT_NAME: &str = "default";
const SMALLEST_RESPONSE: u64 = 1024;
/// The other documented token endpoint, relative to the base URL.
const OTHER_TOKEN_PATH: &str = "/tenancy/auth/oauth/token";

impl Resolver<'_> {
    pub(super) fn accounts(&mut self, accounts: Option<Vec<file::Account>>) -> Vec<Account> {
        let accounts = accounts.unwrap_or_default();
        let resolved: Vec<Account> = accounts
            .into_iter()
            .enumerate()
            .map(|(index, account)| self.account(&format!("accounts[{index}]"), account))
            .collect();
        let names = resolved.iter().map(|account| &*account.options.name);
        self.no_duplicates(
            names,
            |index| format!("accounts[{index}].name"),
            "the name of an account",
        );
        resolved
    }

    fn account(&mut self, path: &str, mut account: file::Account) -> Account {
        let at = |key: &str| format!("{path}.{key}");
        let url = self.required(&at("url"), account.url.take());
        let url = self.url(&at("url"), &url);
        self.base_url(&at("url"), &url);
        let token_url = match account.token_url.take() {
            Some(token_url) => self.url(&at("token_url"), &token_url),
            None => format!("{url}{TOKEN_PATH}"),
        };
        for (key, url) in [("url", &url), ("token_url", &token_url)] {
            if url::is_plain_http_to_elsewhere(url) {
                self.warnings.push(format!(
                    "{}: http:// sends the secret and the token unencrypted; use https://",
                    at(key)
                ));
            }
        }
        let name = self.name(&at("name"), account.name.take(), Some(DEFAULT_NAME));
        let (client_id, client_secret) = self.credentials(path, &mut account);
        let tls = self.tls(&at("tls"), account.tls.unwrap_or_default());
        if tls.insecure_skip_verify {
            self.warnings.push(format!(
                "{}: any certificate is accepted; whoever sits in between can read the secret",
                at("tls.insecure_skip_verify")
            ));
        }
        let tenants = self.tenants(&at("tenants"), account.tenants);
        let discover_clients = account.discover_clients.unwrap_or(false);
        if discover_clients {
            self.warn_of_clients_as_partners(&at("tenants"), &tenants);
        }
        let defaults = opsramp::Options::new(name, url, client_id, client_secret);
        Account {
            tenants,
            discover_clients,
            options: opsramp::Options {
                token_url,
                timeout: self.duration(&at("timeout"), account.timeout, defaults.timeout),
                connect_timeout: self.duration(
                    &at("connect_timeout"),
                    account.connect_timeout,
                    defaults.connect_timeout,
                ),
                requests_per_minute: account.requests_per_minute.inspect(|limit| {
                    if *limit == 0 {
                        self.problems
                            .add(at("requests_per_minute"), "must be at least 1");
                    }
                }),
                max_response_size: self.response_size(
                    &at("max_response_size"),
                    account
                        .max_response_size
                        .map_or(defaults.max_response_size, |size| size.0),
                ),
                proxy_url: account
                    .proxy_url
                    .map(|proxy| self.proxy(&at("proxy_url"), proxy.0)),
                tls,
                ..defaults
            },
        }
    }

    /// Takes the key and the secret, and warns of what is hardly meant by them.
    fn credentials(
        &mut self,
        path: &str,
        account: &mut file::Account,
    ) -> (SecretSource, SecretSource) {
        let at = |key: &str| format!("{path}.{key}");
        let id = account.client_id.take().map(Secret::new);
        let client_id = self.value_or_file(path, "client_id", id, account.client_id_file.take());
        let secret = account.client_secret.take().map(|secret| secret.0);
        if secret
            .as_ref()
            .is_some_and(|secret| secret.expose() == REDACTED)
        {
            self.warnings.push(format!(
                "{}: \"{REDACTED}\" is what the effective configuration shows instead of a secret; write the secret itself",
                at("client_secret")
            ));
        }
        let file = account.client_secret_file.take();
        let client_secret = self.value_or_file(path, "client_secret", secret, file);
        for (key, source) in [("client_id", &client_id), ("client_secret", &client_secret)] {
            if let SecretSource::Value(value) = source
                && let Some(doubt) = value.doubt()
            {
                let at = at(key);
                let input = self.inputs.get(&at).copied();
                let other_way = match input {
                    _ if !is_variable(value.expose()) => "",
                    Some(_) => NOT_EXPANDED_THERE,
                    None => ", or use the …_file key or the OPSRAMP_… variable",
                };
                let place = input.unwrap_or(&at);
                self.warnings.push(format!("{place}: {doubt}{other_way}"));
            }
        }
        (client_id, client_secret)
    }

    /// Notes a base URL that ends like an endpoint, because people paste the URL of an endpoint
    /// where the base is meant.
    fn base_url(&self, path: &str, url: &str) {
        // The longer path comes first, because it ends in the shorter one.
        let found = [OTHER_TOKEN_PATH, TOKEN_PATH, "/api/v2"]
            .into_iter()
            .find_map(|ending| Some((ending, url.strip_suffix(ending)?)));
        if let Some((ending, base)) = found {
            let mut message = format!("ends in {ending}; write the base only: {base}");
            if ending == OTHER_TOKEN_PATH {
                let setting = match self.inputs.get(path) {
                    None => "token_url",
                    Some(flag) if flag.starts_with('-') => "--opsramp.token-url",
                    Some(_) => "OPSRAMP_TOKEN_URL",
                };
                message += &format!(", and set {setting} to {url}");
            }
            self.problems.add(path, message);
        }
    }

    fn url(&self, path: &str, text: &str) -> String {
        if text.is_empty() {
            return String::new();
        }
        let variable = match path.ends_with("token_url") {
            true => "OPSRAMP_TOKEN_URL",
            false => "OPSRAMP_URL",
        };
        let other_way = format!(", or set {variable}, which wins over the key");
        if self.is_unexpanded(path, text, &other_way) {
            return String::new();
        }
        url::base(text).unwrap_or_else(|problem| {
            self.problems.add(path, problem.to_string());
            String::new()
        })
    }

    fn proxy(&self, path: &str, proxy: Secret) -> ProxyUrl {
        const OTHER_WAY: &str =
            ", or leave the key out: HTTPS_PROXY and HTTP_PROXY count without it";
        if !self.is_unexpanded(path, proxy.expose(), OTHER_WAY)
            && let Err(problem) = url::proxy(proxy.expose())
        {
            self.problems.add(path, problem.to_string());
        }
        ProxyUrl(proxy)
    }

    fn response_size(&self, path: &str, size: u64) -> u64 {
        if size < SMALLEST_RESPONSE {
            self.problems.add(path, "must be at least 1KiB");
        }
        size
    }

    fn tls(&self, path: &str, tls: file::Tls) -> TlsOptions {
        for (given, other, key, missing) in [
            (&tls.cert_file, &tls.key_file, "cert_file", "key_file"),
            (&tls.key_file, &tls.cert_file, "key_file", "cert_file"),
        ] {
            if given.is_some() && other.is_none() {
                self.problems
                    .add(format!("{path}.{key}"), format!("needs {missing} too"));
            }
        }
        for (file, key) in [
            (&tls.ca_file, "ca_file"),
            (&tls.cert_file, "cert_file"),
            (&tls.key_file, "key_file"),
        ] {
            if let Some(file) = file {
                self.check_secret_file(&format!("{path}.{key}"), file);
            }
        }
        TlsOptions {
            ca_file: tls.ca_file,
            cert_file: tls.cert_file,
            key_file: tls.key_file,
            insecure_skip_verify: tls.insecure_skip_verify.unwrap_or(false),
        }
    }

    /// Warns of ids that look like a client's where only partners are meant. It is no error,
    /// because ids are opaque.
    fn warn_of_clients_as_partners(&mut self, path: &str, tenants: &[Tenant]) {
        let ids = tenants.iter().map(|tenant| &*tenant.id);
        let clients: Vec<_> = ids.filter(|id| id.starts_with("client_")).collect();
        if !clients.is_empty() {
            let place = self.inputs.get(path).copied().unwrap_or(path);
            self.warnings.push(format!(
                "{place}: with discover_clients, every id here is a partner's, whose clients are searched, not \
                 itself; name a client in an account of its own: {}",
                listed(&clients)
            ));
        }
    }

    fn tenants(&self, path: &str, tenants: Option<Vec<file::Tenant>>) -> Vec<Tenant> {
        let tenants = tenants.unwrap_or_default();
        self.not_empty(path, &tenants, "is missing; name at least one tenant");
        let resolved: Vec<Tenant> = tenants
            .into_iter()
            .enumerate()
            .map(|(index, tenant)| {
                let at = |key: &str| format!("{path}[{index}].{key}");
                let id: Arc<str> = self.required(&at("id"), tenant.id).into();
                let is_segment = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.');
                if !id.chars().all(is_segment) || id.starts_with('.') || id.len() > LONGEST_NAME {
                    self.problems.add(
                        at("id"),
                        format!(
                            "\"{}\" is not a tenant's id; they look like client_1234, msp_1234 or a UUID",
                            shown_value(&id)
                        ),
                    );
                }
                let name = self.name(&at("name"), tenant.name, Some(&id));
                Tenant { id, name }
            })
            .collect();
        let ids = resolved.iter().map(|tenant| &*tenant.id);
        self.no_duplicates(
            ids,
            |index| format!("{path}[{index}].id"),
            "the id of a tenant",
        );
        // A tenant that is listed twice is already reported by its id.
        let mut ids = HashSet::new();
        let names = resolved.iter().map(|tenant| {
            let is_first = ids.insert(&*tenant.id);
            if is_first { &*tenant.name } else { "" }
        });
        self.no_duplicates(
            names,
            |index| format!("{path}[{index}].name"),
            "the name of a tenant",
        );
        resolved
    }
}
