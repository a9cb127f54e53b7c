//! Sessions of the development brain, served by `sinew serve` in real sandboxes.

#![forbid(unsafe_code)]

mod crash;
mod developer;
mod environments;
mod explained;
mod nodes;
mod official_client;
mod operator;
mod own_image;
mod postgres;
mod refused;
mod served;
mod sleep;
mod threads;
mod trouble;
mod upgraded;

use std::time::Duration;

/// Far longer than a scenario takes on a busy machine.
const SCENE: Duration = Duration::from_secs(60);
