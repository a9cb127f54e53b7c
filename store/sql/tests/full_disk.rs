//! A disk that is full: the write is refused, what was acknowledged stays, and with space again
//! the same store goes on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use base_types::CallId;
use store_api::{CallEnd, CallState, Change, NewCall, NewWork, Outage, Store, StoreError};
use store_sql::SqlStore;

/// A small file system of its own, gone with the value.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    fn new() -> Option<SmallDisk> {
        let folder = tempfile::tempdir().expect("make a folder");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=4m", "none"])
            .arg(folder.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then_some(SmallDisk { folder })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The folder is removed next; a mount that stays would be reported by that.
        let _ = Command::new("umount").arg("-l").arg(self.folder.path()).status();
    }
}

struct Writer {
    store: SqlStore,
    work: NewWork,
    generation: base_types::Generation,
}

impl Writer {
    async fn open(journal: &Path) -> Writer {
        let store = SqlStore::open_sqlite(journal).await.expect("open the journal");
        let work = NewWork {
            id: "work_1".into(),
            environment: "env_1".into(),
            session: "session_1".into(),
            node: "node-1".into(),
            token: None,
        };
        store.claim_work(&work).await.expect("claim work");
        let generation = store.take_session(&work.session, &work.node).await.expect("take session");
        Writer { store, work, generation }
    }

    async fn write_call(&self, body: &[u8]) -> Result<CallId, StoreError> {
        let id = CallId::generate();
        let call = NewCall {
            id: id.clone(),
            tool_use: id.as_str().into(),
            tool: "bash".into(),
            custom: false,
            thread: None,
            input: serde_json::Value::Null,
        };
        let end = CallEnd {
            body: body.to_vec(),
            is_error: false,
            summary: String::new(),
            exit_code: None,
        };
        let changes =
            [Change::CallReceived(Box::new(call)), Change::CallFinished { call: id.clone(), end }];
        self.store.apply(&self.work.session, self.generation, &changes).await?;
        Ok(id)
    }
}

#[tokio::test]
async fn a_full_disk_loses_nothing_and_is_survived() {
    let Some(disk) = SmallDisk::new() else {
        eprintln!("SKIP a_full_disk_loses_nothing_and_is_survived: cannot mount a tmpfs");
        return;
    };
    // Something to make room with later.
    fs::write(disk.path("ballast"), vec![0; 2 << 20]).expect("write ballast");
    let writer = Writer::open(&disk.path("journal.db")).await;
    let body = vec![b'x'; 100 << 10];
    let mut acknowledged = Vec::new();
    let error = loop {
        match writer.write_call(&body).await {
            Ok(id) => acknowledged.push(id),
            Err(error) => break error,
        }
        assert!(acknowledged.len() < 100, "the disk takes everything");
    };
    let full = matches!(error, StoreError::Unavailable { outage: Outage::DiskFull, .. });
    assert!(full, "{error:?}");
    assert!(!acknowledged.is_empty());
    // It stays full, and stays an error rather than a hang or a lie.
    assert!(writer.write_call(&body).await.is_err());

    fs::remove_file(disk.path("ballast")).expect("make room");
    for _ in 0..5 {
        acknowledged.push(writer.write_call(&body).await.expect("there is room again"));
    }
    writer.store.close().await;

    let store = SqlStore::open_sqlite(&disk.path("journal.db")).await.expect("open the journal");
    for id in &acknowledged {
        let record = store.call(id).await.expect("read call").expect("it was acknowledged");
        let CallState::Finished { end, .. } = record.state else { panic!("{:?}", record.state) };
        assert!(end.body == body);
    }
    let calls = store.calls(&writer.work.session, None, 1_000).await.expect("list calls");
    assert_eq!(calls.len(), acknowledged.len(), "a refused write was half made");
    store.close().await;
}
