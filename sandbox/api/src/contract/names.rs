//! Promises about what may be asked for at all.

use base_types::{Epoch, ImageId, ProfileName, SandboxId, VolumeId};

use super::Place;
use super::fixture::Fixture;
use crate::{CreateError, DriverError, SandboxSpec};

/// What is not an id is refused before anything is done with it.
pub async fn only_ids_are_taken(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let driver = &fixture.driver;
    let good = fixture.first();
    let before = place.footprint().await;
    let upper = format!("sbx_{}", "A".repeat(32));
    for bad in ["", "..", "../../../etc", "/etc", "sbx_", "sbx_\0", upper.as_str()] {
        let sandbox = SandboxId::new(bad);
        let spec = SandboxSpec { sandbox: sandbox.clone(), ..good.clone() };
        assert!(driver.create(&spec).await.is_err(), "sandbox `{bad}`");
        assert!(driver.stop(&sandbox).await.is_err(), "sandbox `{bad}`");
        assert!(driver.destroy(&sandbox, &good.volume).await.is_err(), "sandbox `{bad}`");
        assert!(driver.status(&sandbox).await.is_err(), "sandbox `{bad}`");
        assert!(driver.connect(&sandbox, Epoch::FIRST).await.is_err(), "sandbox `{bad}`");

        let volume = VolumeId::new(bad);
        let spec = SandboxSpec { volume: volume.clone(), ..good.clone() };
        assert!(driver.create(&spec).await.is_err(), "volume `{bad}`");
        assert!(driver.destroy(&good.sandbox, &volume).await.is_err(), "volume `{bad}`");
        let spec = SandboxSpec { image: ImageId::new(bad), ..good.clone() };
        assert!(driver.create(&spec).await.is_err(), "image `{bad}`");
    }
    let spec = SandboxSpec { epoch: Epoch(0), ..good.clone() };
    assert!(driver.create(&spec).await.is_err(), "epochs count from 1");
    let spec = SandboxSpec { session: "x".repeat(1 << 20).into(), ..good };
    assert!(driver.create(&spec).await.is_err(), "a label of a megabyte");
    assert_eq!(driver.list().await.unwrap(), []);
    assert_eq!(place.footprint().await, before);
}

pub async fn what_does_not_exist_is_named(place: &dyn Place) {
    let fixture = Fixture::of(place).await;
    let driver = &fixture.driver;
    let error = driver.image("no-such-image").await.expect_err("there is no such image");
    assert!(matches!(&error, DriverError::NoSuchImage(name) if name == "no-such-image"), "{error}");

    let image = ImageId::new("0".repeat(32));
    let spec = SandboxSpec { image: image.clone(), ..fixture.first() };
    let error = driver.create(&spec).await.expect_err("there is no such image");
    assert!(matches!(&error, CreateError::NoSuchImage(id) if *id == image), "{error}");

    let profile = ProfileName::new("no-such-profile");
    let spec = SandboxSpec { profile: profile.clone(), ..fixture.first() };
    let error = driver.create(&spec).await.expect_err("there is no such profile");
    assert!(matches!(&error, CreateError::NoSuchProfile(name) if *name == profile), "{error}");
    assert_eq!(driver.list().await.unwrap(), []);
}
