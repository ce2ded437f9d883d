//! Flags and the environment.

use super::*;

#[test]
fn a_flag_that_picks_tenants_may_leave_out_those_that_a_search_names() {
    let text = minimal_and("searches: [{name: a, tenants: [client_1]}]");
    let flags = Overrides {
        tenants: vec!["client_2".to_owned()],
        ..Overrides::default()
    };
    let loaded = load_with(Some(&text), &[], &flags).unwrap();
    assert!(!loaded.config.searches[0].is_for("client_2"));
    // A variable is set for a daemon, which would poll nothing.
    let variables = [("OPSRAMP_TENANT_ID", "client_2")];
    let error = load_with(Some(&text), &variables, &Overrides::default()).unwrap_err();
    let told = "is no tenant of any account, whose tenants come from OPSRAMP_TENANT_ID";
    assert!(error.to_string().contains(told), "{error}");
}

#[test]
fn a_flag_that_picks_tenants_leaves_a_daemon_something_to_poll_and_takes_no_name() {
    let text = minimal_and("").replace("[client_1]", "[{id: client_1, name: shop}]")
        + "searches: [{name: a, tenants: [client_1]}]";
    let pick = |tenants: &[&str]| {
        let flags = Overrides {
            tenants: tenants.iter().map(|&tenant| tenant.to_owned()).collect(),
            ..Overrides::default()
        };
        let loaded = load_with(Some(&text), &[], &flags);
        loaded.and_then(Loaded::to_be_polled)
    };
    pick(&["client_1"]).unwrap();
    pick(&["client_2", "client_1"]).unwrap();
    assert_snapshot!(pick(&["client_2"]).unwrap_err(), @"--opsramp.tenant: no search is for any of these tenants, so that nothing would be polled; write others, or name these in a search");
    assert_snapshot!(pick(&["shop"]).unwrap_err(), @r#"--opsramp.tenant: "shop" is a tenant's name; write its id, client_1"#);
    let variables = [("OPSRAMP_TENANT_ID", "shop")];
    let error = load_with(Some(&text), &variables, &Overrides::default()).unwrap_err();
    assert_snapshot!(error, @r#"OPSRAMP_TENANT_ID: "shop" is a tenant's name; write its id, client_1"#);
}

#[test]
fn what_wins_over_the_file_is_named_and_no_value_is() {
    let overridden = |text: &str, env: &[(&str, &str)], flags: &Overrides| {
        load_with(Some(text), env, flags).unwrap().overridden
    };
    let none = Overrides::default();
    let flags = Overrides {
        interval: Some("5s".parse().unwrap()),
        web: WebOverrides {
            config_file: Some("web.yml".into()),
            ..WebOverrides::default()
        },
        ..Overrides::default()
    };
    let env = env_and(&[("OPSRAMP_EXPORTER_POSTGRES_URL", "postgres://u:hunter2@h/d")]);
    assert_eq!(overridden(MINIMAL, &[], &none), None);
    assert_eq!(
        overridden(MINIMAL, &[], &flags),
        None,
        "the file says nothing of it"
    );
    let text = minimal_and(
        "searches: [{name: a, interval: 1m}]\nstate: {path: a.db}\nweb: {config_file: b.yml}\n",
    );
    assert_snapshot!(overridden(&text, &env, &flags).unwrap(), @"flags and variables win over the configuration file: OPSRAMP_CLIENT_ID over accounts[0].client_id, OPSRAMP_CLIENT_SECRET over accounts[0].client_secret_file, OPSRAMP_TENANT_ID over accounts[0].tenants, OPSRAMP_URL over accounts[0].url, --search.interval over searches[0].interval, OPSRAMP_EXPORTER_POSTGRES_URL over state.path, --web.config.file over web.config_file");
}

#[test]
fn a_variable_that_wins_over_a_default_of_the_file_is_named() {
    let overridden = |text: &str, env: &[(&str, &str)]| {
        let none = Overrides::default();
        load_with(Some(text), env, &none).unwrap().overridden
    };
    let token = ("OPSRAMP_TOKEN_URL", "https://other.example/token");
    let state = ("OPSRAMP_EXPORTER_STATE_PATH", "other.db");
    let database = ("OPSRAMP_EXPORTER_POSTGRES_URL", "postgres://u:hunter2@h/d");
    assert_snapshot!(overridden(MINIMAL, &[token, state]).unwrap(), @"flags and variables win over the configuration file: OPSRAMP_TOKEN_URL over the default of accounts[0].token_url, OPSRAMP_EXPORTER_STATE_PATH over the default of state.path");
    assert_snapshot!(overridden(MINIMAL, &[database]).unwrap(), @"flags and variables win over the configuration file: OPSRAMP_EXPORTER_POSTGRES_URL over the default of state.path");
    // A variable may give a required key that the file lacks.
    let partial = MINIMAL.replace("    client_secret_file: /run/secret\n", "");
    let secret = ("OPSRAMP_CLIENT_SECRET", "hunter2");
    assert_eq!(overridden(&partial, &[secret]), None);
    let secret = ("OPSRAMP_CLIENT_SECRET_FILE", "/run/other");
    assert_eq!(overridden(&partial, &[secret]), None);
    // Variables may also give the whole account.
    assert_eq!(overridden("log: {}", &env_and(&[token])), None);
    // A flag cannot have been left behind in a shell.
    let flags = Overrides {
        token_url: set("https://other.example/token"),
        state_path: Some("other.db".into()),
        ..Overrides::default()
    };
    let loaded = load_with(Some(MINIMAL), &[], &flags).unwrap();
    assert_eq!(loaded.overridden, None);
}

#[test]
fn an_unknown_tenant_is_told_with_where_the_tenants_come_from() {
    let text = minimal_and("searches: [{name: a, tenants: [client_1]}]");
    let env = [("OPSRAMP_TENANT_ID", "client_2")];
    let error = load_with(Some(&text), &env, &Overrides::default()).unwrap_err();
    assert_snapshot!(error, @r#"config.yml:6:32: searches[0].tenants[0]: "client_1" is no tenant of any account, whose tenants come from OPSRAMP_TENANT_ID; did you mean "client_2"?"#);
}

#[test]
fn what_is_plainly_no_name_of_the_configuration_file_is_not_shown() {
    let url = "postgres://u:hunter2@h/d";
    let variable = |name: &str| (name == "OPSRAMP_EXPORTER_CONFIG_FILE").then(|| url.into());
    let by_variable = Config::load(None, &Overrides::default(), &variable);
    let by_flag = Config::load(Some(Path::new(url)), &Overrides::default(), &|_| None);
    let of_web = Config::load_web(None, &WebOverrides::default(), &variable);
    let errors = [
        by_variable.unwrap_err(),
        by_flag.unwrap_err(),
        of_web.unwrap_err(),
    ];
    assert_snapshot!(errors.map(|error| error.to_string()).join("\n"), @"
    OPSRAMP_EXPORTER_CONFIG_FILE: is a URL, not the name of a file; name the configuration file
    --config.file: is a URL, not the name of a file; name the configuration file
    OPSRAMP_EXPORTER_CONFIG_FILE: is a URL, not the name of a file; name the configuration file
    ");
}

const ACCOUNT_ENV: [(&str, &str); 4] = [
    ("OPSRAMP_URL", "https://env.example.com/"),
    ("OPSRAMP_TENANT_ID", "client_1, client_2"),
    ("OPSRAMP_CLIENT_ID", "ENV"),
    ("OPSRAMP_CLIENT_SECRET", "hunter2\n"),
];

fn env_and(more: &[(&'static str, &'static str)]) -> Vec<(&'static str, &'static str)> {
    ACCOUNT_ENV.iter().chain(more).copied().collect()
}

#[test]
fn the_environment_alone_makes_an_account() {
    let loaded = load_with(None, &ACCOUNT_ENV, &Overrides::default()).unwrap();
    let [account] = loaded.config.accounts.as_slice() else {
        panic!("{loaded:?}")
    };
    assert_eq!(&*account.options.name, "default");
    assert_eq!(account.options.url, "https://env.example.com");
    assert_eq!(
        account.options.token_url,
        "https://env.example.com/auth/oauth/token"
    );
    assert_eq!(
        account.options.client_secret,
        SecretSource::Value(Secret::new("hunter2"))
    );
    let ids: Vec<&str> = account.tenants.iter().map(|t| &*t.id).collect();
    assert_eq!(ids, ["client_1", "client_2"]);
    assert_eq!(loaded.file, None);
}

#[test]
fn flags_win_over_the_environment_and_that_over_the_file() {
    let flags = Overrides {
        client_id: set("FLAG"),
        tenants: vec!["client_9".to_owned()],
        client_secret_file: Some("/flag".into()),
        insecure_skip_verify: true,
        query: set("actions:OPEN+priority:P0"),
        interval: Some("5s".parse().unwrap()),
        state_path: Some("flag.db".into()),
        ..Overrides::default()
    };
    let env = env_and(&[("OPSRAMP_EXPORTER_STATE_PATH", "env.db")]);
    let text = minimal_and("state: {postgres: {url_file: x}}");
    let config = load_with(Some(&text), &env, &flags).unwrap().config;
    let account = &config.accounts[0];
    assert_eq!(account.options.url, "https://env.example.com");
    assert_eq!(
        account.options.client_id,
        SecretSource::Value(Secret::new("FLAG"))
    );
    assert_eq!(
        account.options.client_secret,
        SecretSource::File("/flag".into())
    );
    assert!(account.options.tls.insecure_skip_verify);
    assert_eq!(&*account.tenants[0].id, "client_9");
    assert_eq!(config.searches[0].query, "actions:OPEN+priority:P0");
    assert_eq!(config.searches[0].interval, Duration::from_secs(5));
    assert_eq!(&*config.searches[0].name, "open");
    assert_eq!(
        config.state,
        State::File {
            path: "flag.db".into()
        }
    );
}

#[test]
fn a_tenant_that_the_file_knows_keeps_its_name() {
    let text = MINIMAL.replace("[client_1]", "[{id: client_1, name: retail}, client_2]");
    let env = [("OPSRAMP_TENANT_ID", "client_1")];
    let loaded = load_with(Some(&text), &env, &Overrides::default()).unwrap();
    let [tenant] = loaded.config.accounts[0].tenants.as_slice() else {
        panic!("{loaded:?}")
    };
    assert_eq!(tenant.name, Arc::from("retail"));
}

#[test]
fn the_state_is_where_the_flag_the_environment_the_file_or_systemd_says() {
    let path = |state: &State| match state {
        State::File { path } => path.display().to_string(),
        State::Postgres { url, lease } => format!("{url:?} {lease:?}"),
    };
    let state = |text: &str, env: &[(&str, &str)], flags: &Overrides| {
        path(&load_with(Some(text), env, flags).unwrap().config.state)
    };
    let none = Overrides::default();
    let file = minimal_and("state: {path: file.db}");
    let postgres = minimal_and("state: {postgres: {url_file: x, lease: 1m}}");
    let systemd = ("STATE_DIRECTORY", "/var/lib/a:/var/lib/b");
    assert_eq!(state(MINIMAL, &[], &none), "opsramp-exporter.db");
    assert_eq!(state(MINIMAL, &[systemd], &none), "/var/lib/a/state.db");
    assert_eq!(state(&file, &[systemd], &none), "file.db");
    let env = [systemd, ("OPSRAMP_EXPORTER_STATE_PATH", "env.db")];
    assert_eq!(state(&file, &env, &none), "env.db");
    let env = [(
        "OPSRAMP_EXPORTER_POSTGRES_URL",
        "postgres://user:hunter2@db",
    )];
    assert_eq!(state(&file, &env, &none), "<secret> 15s");
    assert_eq!(state(&postgres, &env, &none), "<secret> 60s");
    let flags = Overrides {
        postgres_url_file: Some("flag".into()),
        ..Overrides::default()
    };
    assert_eq!(state(&postgres, &env, &flags), "File(\"flag\") 60s");
}

#[test]
fn the_environment_names_the_file_where_the_flag_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yml");
    std::fs::write(&path, MINIMAL).unwrap();
    let by_env = path.clone().into_os_string();
    let env = move |name: &str| (name == CONFIG_FILE).then(|| by_env.clone());
    let loaded = Config::load(None, &Overrides::default(), &env).unwrap();
    assert_eq!(loaded.file, Some(path));
    let missing = Path::new("missing.yml");
    let error = Config::load(Some(missing), &Overrides::default(), &env).unwrap_err();
    assert!(error.to_string().ends_with("missing.yml"), "{error}");
}

#[test]
fn a_proxy_of_the_environment_that_would_be_left_out_ends_the_start_and_is_not_shown() {
    let none = Overrides::default();
    let load = |text: &str, variable| {
        let env = [(variable, "htpp://me:hunter2@proxy:3128")];
        load_with(Some(text), &env, &none).map_err(|error| error.to_string())
    };
    assert_snapshot!(load(MINIMAL, "HTTPS_PROXY").unwrap_err(), @"HTTPS_PROXY: is not the URL of an HTTP proxy; write it as http://host:port, name the hosts that are reached without one in NO_PROXY, or unset it");
    // Variables that only concern other programs are not checked.
    load(MINIMAL, "HTTP_PROXY").unwrap();
    let of_its_own = MINIMAL.replace(
        "    client_id:",
        "    proxy_url: http://proxy\n    client_id:",
    );
    load(&of_its_own, "HTTPS_PROXY").unwrap();
    let sink = "log:\n  sinks:\n    - { type: otlp, endpoint: 'http://loki/v1/logs' }\n";
    let told = load(&minimal_and(sink), "HTTP_PROXY").unwrap_err();
    assert!(told.starts_with("HTTP_PROXY: is not"), "{told}");
}

#[test]
fn nothing_at_all_is_answered_with_every_way_to_go_on() {
    let nothing = load_with(None, &[], &Overrides::default()).unwrap_err();
    assert_snapshot!(nothing, @r#"
    no OpsRamp account is configured; give one of these:
      a file:       --config.file=opsramp-exporter.yml (config.example.yml shows every key)
      environment:  OPSRAMP_URL, OPSRAMP_TENANT_ID, OPSRAMP_CLIENT_ID and OPSRAMP_CLIENT_SECRET_FILE
      flags:        --opsramp.url, --opsramp.tenant, --opsramp.client-id and --opsramp.client-secret-file
    or try `opsramp-exporter demo`, which needs none
    "#);
    for without in ["", "log: {}", "accounts: []"] {
        let error = errors(without);
        let named = "config.yml: no OpsRamp account is configured; write it under accounts";
        assert!(error.starts_with(named), "{error}");
    }
    let empty = [("OPSRAMP_URL", "")];
    let empty = load_with(None, &empty, &Overrides::default());
    assert!(matches!(empty, Err(ConfigError::NoAccount { file: None })));
}

#[test]
fn wrong_flags_and_variables_are_named_as_the_user_wrote_them() {
    let wrong = |text: Option<&str>, env: &[(&str, &str)], flags: &Overrides| {
        load_with(text, env, flags).unwrap_err().to_string()
    };
    let none = Overrides::default();
    let flags = Overrides {
        url: set("acme"),
        tenants: vec!["a b".to_owned()],
        query: set(""),
        web: WebOverrides {
            telemetry_path: set("/-/ready"),
            ..WebOverrides::default()
        },
        ..Overrides::default()
    };
    let two_accounts = MINIMAL.replace("tenants", "name: a\n    tenants")
        + "  - {name: b, url: 'https://b', client_id: b, client_secret_file: b, tenants: [b]}\n";
    let two_searches = minimal_and("searches: [{name: a}, {name: b}]");
    let interval = Overrides {
        interval: Some("5s".parse().unwrap()),
        ..Overrides::default()
    };
    let both = Overrides {
        state_path: Some("a".into()),
        postgres_url_file: Some("b".into()),
        ..Overrides::default()
    };
    let all = [
        wrong(None, &[("OPSRAMP_URL", "https://acme")], &none),
        wrong(None, &ACCOUNT_ENV, &flags),
        wrong(
            None,
            &env_and(&[("OPSRAMP_CLIENT_SECRET_FILE", "x")]),
            &none,
        ),
        wrong(
            Some(MINIMAL),
            &[
                ("OPSRAMP_EXPORTER_STATE_PATH", "x"),
                (
                    "OPSRAMP_EXPORTER_POSTGRES_URL",
                    "postgres://user:hunter2@db",
                ),
            ],
            &none,
        ),
        wrong(Some(&two_accounts), &[("OPSRAMP_TENANT_ID", "c")], &none),
        wrong(Some(&two_searches), &[], &interval),
        wrong(Some(MINIMAL), &[], &both),
    ];
    assert_snapshot!(all.join("\n"), @r#"
    the configuration has 3 problems:
      --opsramp.client-id or OPSRAMP_CLIENT_ID: is missing
      --opsramp.client-secret-file, OPSRAMP_CLIENT_SECRET_FILE or OPSRAMP_CLIENT_SECRET: is missing
      --opsramp.tenant or OPSRAMP_TENANT_ID: is missing; name at least one tenant
    the configuration has 4 problems:
      --opsramp.url: must start with https:// (or http://); write "https://acme"
      --opsramp.tenant: "a b" is not a tenant's id; they look like client_1234, msp_1234 or a UUID
      --search.query: is empty; write actions:OPEN or another
      --web.telemetry-path: paths below /-/ are taken; choose another
    OPSRAMP_CLIENT_SECRET: cannot be set together with OPSRAMP_CLIENT_SECRET_FILE
    OPSRAMP_EXPORTER_STATE_PATH: cannot be set together with OPSRAMP_EXPORTER_POSTGRES_URL
    OPSRAMP_TENANT_ID: is meant for one account, and the configuration file has 2; change it there
    --search.interval: is meant for one search, and the configuration file has 2; change it there
    --state.path: cannot be given together with --state.postgres-url-file
    "#);
}

#[test]
fn a_secret_where_a_flag_or_variable_names_its_file_is_refused_and_not_shown() {
    let secret = || Some("postgres://u:hunter2@h/db".into());
    let none = Overrides::default;
    let flags = [
        Overrides {
            client_secret_file: secret(),
            ..none()
        },
        Overrides {
            state_path: secret(),
            ..none()
        },
        Overrides {
            postgres_url_file: secret(),
            ..none()
        },
        Overrides {
            web: WebOverrides {
                config_file: secret(),
                ..WebOverrides::default()
            },
            ..none()
        },
    ];
    let of_flags = flags.map(|flags| load_with(Some(MINIMAL), &[], &flags));
    let of_variables = ["OPSRAMP_CLIENT_SECRET_FILE", "OPSRAMP_EXPORTER_STATE_PATH"]
        .map(|name| load_with(Some(MINIMAL), &[(name, "Bearer hunter2")], &none()));
    let told: Vec<String> = of_flags
        .into_iter()
        .chain(of_variables)
        .map(|loaded| loaded.unwrap_err().to_string())
        .collect();
    assert!(!told.iter().any(|error| error.contains("hunter2")));
    assert_snapshot!(told.join("\n"), @r#"
    --opsramp.client-secret-file: is a URL, not the name of a file; put it into a file, and name that file here
    --state.path: is a URL, not the name of a file; name the state's own; the URL of a database goes into a file that state.postgres.url_file names
    --state.postgres-url-file: is a URL, not the name of a file; put it into a file, and name that file here
    --web.config.file: is a URL, not the name of a file; put it into a file, and name that file here
    OPSRAMP_CLIENT_SECRET_FILE: is the value of a header, not the name of a file; put it into a file, and name that file here
    OPSRAMP_EXPORTER_STATE_PATH: is the value of a header, not the name of a file; name the state's own; the URL of a database goes into a file that state.postgres.url_file names
    "#);
}

/// Advice to set the same variable again, or the key that it overrides, would lead in a circle.
#[test]
fn what_was_not_expanded_where_it_was_set_is_told_to_be_mended_there() {
    let unexpanded = "write the URL itself in its place, for whatever sets it did not expand it";
    for name in ["OPSRAMP_URL", "OPSRAMP_TOKEN_URL"] {
        let set = load_with(Some(MINIMAL), &[(name, "$X")], &Overrides::default());
        let told = set.unwrap_err().to_string();
        assert!(
            told.starts_with(name) && told.ends_with(unexpanded),
            "{told}"
        );
    }
    let by_flag = Overrides {
        url: Some("${URL}".to_owned()),
        client_id: Some("$KEY".to_owned()),
        ..Overrides::default()
    };
    let told = load_with(Some(MINIMAL), &[], &by_flag).unwrap_err();
    let told = told.to_string();
    assert!(
        told.starts_with("--opsramp.url: ") && told.ends_with(unexpanded),
        "{told}"
    );
    let by_flag = Overrides {
        url: None,
        ..by_flag
    };
    let secret = [("OPSRAMP_CLIENT_SECRET", "${X}")];
    let loaded = load_with(Some(MINIMAL), &secret, &by_flag).unwrap();
    assert_snapshot!(loaded.warnings.join("\n"), @r"
    --opsramp.client-id: is a variable, and variables are not expanded; write its value in its place, for whatever sets it did not expand it
    OPSRAMP_CLIENT_SECRET: is a variable, and variables are not expanded; write its value in its place, for whatever sets it did not expand it
    ");
}

#[test]
fn a_variable_that_is_not_text_is_named() {
    use std::os::unix::ffi::OsStringExt as _;

    let env = |name: &str| (name == "OPSRAMP_URL").then(|| OsString::from_vec(vec![0xff]));
    let error = Config::parse(None, &Overrides::default(), &env).unwrap_err();
    assert_eq!(error.to_string(), "OPSRAMP_URL: is not UTF-8 text");
}
