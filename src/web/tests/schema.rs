//! `docs/api.schema.json` describes the answers of the JSON API exactly.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::*;
use crate::record::tests::full;

/// Returns the schema. The published schema allows further keys, for later versions; this one does
/// not.
fn schema() -> Value {
    let mut schema: Value =
        serde_json::from_str(include_str!("../../../docs/api.schema.json")).unwrap();
    for definition in schema["$defs"].as_object_mut().unwrap().values_mut() {
        if definition.get("additionalProperties").is_none() {
            definition["additionalProperties"] = json!(false);
        }
    }
    schema
}

#[track_caller]
fn assert_valid(definition: &str, answer: &Value) {
    let mut schema = schema();
    let members = schema.as_object_mut().unwrap();
    members.remove("oneOf");
    members.insert("$ref".to_owned(), json!(format!("#/$defs/{definition}")));
    let validator = jsonschema::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap();
    let wrong: Vec<String> = validator
        .iter_errors(answer)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}\n{answer:#}");
}

/// Gives the account a token, the sink an error, and the searches every state.
fn furnish(site: &Site) {
    site.board.set_search(pending(key("client_1", "retail")));
    site.board.set_search(up(key("client_2", "wholesale")));
    let mut failed = failing(key("client_3", "repairs"), "no route");
    failed.polls = VecDeque::from([PollSummary {
        started: now(),
        took: Duration::from_millis(20),
        requests: 1,
        outcome: Err(failed.last_error.clone().unwrap()),
    }]);
    site.board.set_search(failed);
    see_account(site);
    let idle = site.metrics.register_account(&"idle".into());
    let error = opsramp::Error::Throttled { retry_after: None };
    idle.token_failed("throttled", &error);
    site.board.update_sink(&"file".into(), |sink| {
        sink.kind = "file";
        sink.error = Some("disk full".to_owned());
    });
}

/// Returns an alert with every field that is kept.
pub(super) fn complete_alert() -> OpenAlert {
    kept("1", &full().fields)
}

fn with_complete_alert() -> Site {
    Site::open(Setup {
        alerts: Alerts::Complete,
        ..Setup::default()
    })
}

#[tokio::test]
async fn answers_are_as_their_schema_says() {
    let site = Site::open(Setup::default());
    assert_valid("status", &site.get("/api/v1/status").await.json());
    furnish(&site);
    assert_valid("status", &site.get("/api/v1/status").await.json());
    assert_valid("alerts", &site.get("/api/v1/alerts").await.json());
    let complete = with_complete_alert();
    assert_valid("alerts", &complete.get("/api/v1/alerts").await.json());
    for path in ["/api/v1/status?limit=0", "/api/v1/alerts?colour=red"] {
        assert_valid("error", &site.get(path).await.json());
    }
    let failing = Site::open(Setup {
        alerts: Alerts::Fail,
        ..Setup::default()
    });
    assert_valid("error", &failing.get("/api/v1/alerts").await.json());
}

#[tokio::test]
async fn the_schema_says_nothing_that_is_not_answered() {
    let site = with_complete_alert();
    furnish(&site);
    let mut answered = Vec::new();
    collect_keys(&site.get("/api/v1/status").await.json(), &mut answered);
    collect_keys(&site.get("/api/v1/alerts").await.json(), &mut answered);
    let answered: BTreeSet<String> = answered.into_iter().collect();
    let schema = schema();
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        for key in definition["properties"].as_object().unwrap().keys() {
            let known = answered.contains(key) || name == "error";
            assert!(known, "{name}.{key} is never answered");
        }
    }
}
