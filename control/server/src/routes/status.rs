//! `GET /status`

use axum::Json;
use axum::extract::State as Extract;
use base_types::Chain;
use sandbox_api::Vitality;

use super::State;
use crate::api::{DriverStatus, Health, StatusAnswer};

pub(super) async fn status(Extract(shared): State) -> Json<StatusAnswer> {
    let store = match shared.store.now().await {
        Ok(_) => Health::good(),
        Err(error) => Health::bad(Chain(&error).to_string()),
    };
    let tier = shared.driver.tier().to_string();
    let driver = match shared.driver.list().await {
        Ok(sandboxes) => DriverStatus {
            tier,
            health: Health::good(),
            sandboxes_running: sandboxes
                .iter()
                .filter(|sandbox| matches!(sandbox.vitality, Vitality::Running { .. }))
                .count(),
            sandboxes_known: sandboxes.len(),
        },
        Err(error) => DriverStatus {
            tier,
            health: Health::bad(Chain(&error).to_string()),
            sandboxes_running: 0,
            sandboxes_known: 0,
        },
    };
    Json(StatusAnswer {
        version: shared.version.clone(),
        node: shared.node.clone(),
        pid: std::process::id(),
        started_at: shared.started_at,
        environments: shared.control.environments(),
        serving: shared.control.serving(),
        store,
        driver,
    })
}
