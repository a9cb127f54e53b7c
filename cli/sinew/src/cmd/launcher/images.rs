//! The image cache as the launcher uses it.

use std::path::Path;

use base_types::ImageId;
use sandbox_api::Image;
use sandbox_image::{GetImageError, ImageStore, OpenStoreError};
use sandbox_launcher::parts::{Images, OpenImage, PartError};

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
            Ok(lock) => Ok(Some(OpenImage { rootfs: image.rootfs(), in_use: Box::new(lock) })),
            Err(GetImageError::Missing { .. }) => Ok(None),
            Err(error) => Err(failed(&error)),
        }
    }
}
