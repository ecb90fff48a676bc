//! The stack against a second TCP/IP stack that plays the container's kernel, over packets in memory and a fake clock.

mod closing;
mod corpus;
mod datagram;
mod flood;
mod hostile;
mod kernel;
mod many;
mod mutation;
mod net;
mod opening;
mod packet;
mod transfer;

#[test]
fn every_file_of_this_folder_is_a_module() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/stack");
    for entry in std::fs::read_dir(folder).expect("the folder is there") {
        let name = entry.expect("its entries can be read").file_name().into_string().expect("names are UTF-8");
        let module = name.strip_suffix(".rs").expect("only Rust files");
        assert!(module == "main" || include_str!("main.rs").contains(&format!("mod {module};")), "{name} is forgotten");
    }
}
