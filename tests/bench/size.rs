//! Sizes of what people download.

use bollard::query_parameters::ListImagesOptions;
use tp_tests::docker::engine;
use tp_tests::given::given;
use tp_tests::runtime::block_on;

/// Names with bytes: the binaries beside the client, then the images.
pub(crate) fn all() -> Vec<(String, u64)> {
    let folder = given().tp.parent().expect("a file is in a folder");
    let binaries = ["tp", "tp-manager", "tp-agent"].into_iter().filter_map(|name| {
        let bytes = std::fs::metadata(folder.join(name)).ok()?.len();
        Some((name.to_owned(), bytes))
    });
    let images = block_on(engine().list_images(None::<ListImagesOptions>)).expect("the engine lists images");
    let (_, version) = given().sample_image.rsplit_once(':').expect("the image has a tag");
    let wanted = |tag: &str| {
        let (name, of) = tag.rsplit_once(':').unwrap_or((tag, ""));
        (matches!(name, "tp-manager" | "tp-agent") && of == version) || (name == "tp-daemon" && of.starts_with(version))
    };
    let mut found: Vec<_> = binaries.collect();
    let first = found.len();
    for image in images {
        let size = u64::try_from(image.size).unwrap_or_default();
        found.extend(image.repo_tags.into_iter().filter(|tag| wanted(tag)).map(|tag| (format!("image {tag}"), size)));
    }
    found[first..].sort();
    found
}
