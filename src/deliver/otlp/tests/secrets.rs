use super::*;

#[tokio::test]
async fn secrets_that_a_receiver_echoes_are_hidden_wherever_they_are_shown() {
    let (receiver, mut options) = Peer::start().await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "Bearer hunter2-token\n").unwrap();
    options.headers = BTreeMap::from([
        ("Authorization".to_owned(), SecretSource::File(path)),
        (
            "X-Api-Key".to_owned(),
            SecretSource::Value(Secret::new("s3cret-key")),
        ),
    ]);
    let mut otlp = Otlp::new(&options).unwrap();
    let echo = "who is Bearer hunter2-token, hunter2-token or s3cret-key?";
    let shown = "who is <secret>, <secret> or <secret>?";
    let partial = ExportLogsServiceResponse {
        partial_success: Some(ExportLogsPartialSuccess {
            rejected_log_records: 1,
            error_message: echo.to_owned(),
        }),
    };
    receiver.answer((StatusCode::UNAUTHORIZED, echo));
    receiver.answer((StatusCode::OK, echo));
    receiver.answer((StatusCode::BAD_REQUEST, [(CONTENT_TYPE, "text/html")], echo));
    receiver.answer((StatusCode::OK, [(CONTENT_TYPE, "s3cret-key")], "who"));
    receiver.answer((StatusCode::BAD_REQUEST, echo));
    receiver.answer(([(CONTENT_TYPE, PROTOBUF)], partial.encode_to_vec()));
    // Names of hosts are shown in small letters.
    let place = [(LOCATION, "http://S3cret-Key.example/")];
    receiver.answer((StatusCode::FOUND, place));
    for round in 0..7 {
        let progress = otlp.deliver(&alerts([1]), ours).await;
        let debug = format!("{progress:?}");
        assert!(
            !debug.contains("hunter2") && !debug.contains("s3cret"),
            "{debug}"
        );
        let text = match progress.refused.first() {
            Some(refusal) => refusal.reason.clone(),
            None => error(progress).to_string(),
        };
        let expected = match round {
            3 => "JSON (<secret>)",
            6 => "a redirect to http://<secret>.example,",
            _ => shown,
        };
        assert!(text.contains(expected), "{round}: {text}");
    }
    let inner = receiver.0.lock();
    assert_eq!(inner.requests[5].0[AUTHORIZATION], "Bearer hunter2-token");
}
