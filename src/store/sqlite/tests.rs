use crate::store::{Options, conformance};

fn fresh() -> (Options, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let options = Options::Sqlite {
        path: folder.path().join("state.db"),
        journal_limit: 1000,
    };
    (options, folder)
}

conformance::suite!(fresh);
