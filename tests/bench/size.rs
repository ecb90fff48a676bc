//! Sizes of what people download.

use tp_tests::docker::{self, engine};
use tp_tests::given::given;
use tp_tests::runtime::block_on;
use tp_tests::test::Connection;

/// What the client binary is called in the report.
pub(crate) const CLIENT: &str = "tp";

/// Names with bytes: the client and the binaries beside it, then the images.
pub(crate) fn all(connection: &Connection<'_>) -> Vec<(String, u64)> {
    let client = &given().tp;
    let beside = |name: &str| (name.to_owned(), client.with_file_name(name));
    let binaries = [(CLIENT.to_owned(), client.clone()), beside("tp-manager"), beside("tp-agent")];
    let binaries = binaries.into_iter().filter_map(|(name, path)| Some((name, std::fs::metadata(path).ok()?.len())));

    let (_, version) = given().sample_image.rsplit_once(':').expect("the image has a tag");
    let daemon = docker::inspect(&connection.container()).and_then(|it| it.config).and_then(|it| it.image);
    let images = [Some(format!("tp-manager:{version}")), Some(format!("tp-agent:{version}")), daemon];
    let images = images.into_iter().flatten().filter_map(|image| {
        let inspected = block_on(engine().inspect_image(&image)).ok()?;
        Some((format!("image {image}"), u64::try_from(inspected.size?).ok()?))
    });
    binaries.chain(images).collect()
}
