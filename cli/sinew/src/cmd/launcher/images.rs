//! The image cache as the launcher uses it.

use std::path::Path;

use base_types::ImageId;
use sandbox_api::Image;
use sandbox_image::{GetImageError, ImageConfig, ImageStore, OpenStoreError, ResolvedUser};
use sandbox_launcher::parts::{ImageWords, Images, OpenImage, PartError, User};

use super::failed;

pub struct ImageParts {
    store: ImageStore,
}

impl ImageParts {
    pub fn open(dir: &Path) -> Result<Self, OpenStoreError> {
        Ok(Self { store: ImageStore::open(dir)? })
    }

    fn find(&self, name: &str) -> Result<Option<sandbox_image::Image>, PartError> {
        match self.store.get(name) {
            Ok(image) => Ok(Some(image)),
            Err(GetImageError::Missing { .. }) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}

impl Images for ImageParts {
    fn named(&self, name: &str) -> Result<Option<Image>, PartError> {
        let found = self.find(name)?;
        Ok(found.map(|image| Image { id: image.id().clone(), name: image.manifest.name.clone() }))
    }

    fn open(&self, id: &ImageId) -> Result<Option<OpenImage>, PartError> {
        // A name would find an image too, and another one tomorrow.
        let found = self.find(id.as_str())?.filter(|image| image.id() == id);
        let Some(image) = found else { return Ok(None) };
        match self.store.lock_for_use(id) {
            Ok(lock) => {
                let words = image.manifest.config.as_ref().map(words).unwrap_or_default();
                Ok(Some(OpenImage { rootfs: image.rootfs(), words, in_use: Box::new(lock) }))
            }
            Err(GetImageError::Missing { .. }) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}

fn words(config: &ImageConfig) -> ImageWords {
    ImageWords {
        user: config.user.as_ref().map(user),
        workdir: config.workdir.clone(),
        env: config.env.clone(),
        command: config.entrypoint.iter().chain(&config.cmd).cloned().collect(),
    }
}

/// One without a home gets the one that is made for the tools' user in every sandbox.
fn user(user: &ResolvedUser) -> User {
    let name = user.name.split(':').next().unwrap_or_default();
    User {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups.clone(),
        name: name.to_owned(),
        home: user.home.clone().unwrap_or_else(|| User::agent().home),
    }
}
