// SPDX-License-Identifier: BSD-3-Clause
//! A client made of rust-vmm's crate, as cloud-hypervisor is: it takes the device on the socket through what the crate
//! can do, and panics where something is not as it must be. Prints the vendor and device id.
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd};

use vfio_user::Client;

const CONFIG: u32 = 7;
const LINE: u64 = 0x3c;
const DATA_EVENTFD_ACTION_TRIGGER: u32 = 0x24;
const DATA_NONE_ACTION_TRIGGER: u32 = 0x21;

extern "C" {
    fn eventfd(count: u32, flags: i32) -> i32;
}

fn fires(client: &mut Client, index: u32) {
    let mut event = unsafe { File::from_raw_fd(eventfd(0, 0)) };
    let mut count = [0u8; 8];

    client.set_irqs(index, DATA_EVENTFD_ACTION_TRIGGER, 0, 1, &[event.as_raw_fd()]).expect("eventfd");
    client.set_irqs(index, DATA_NONE_ACTION_TRIGGER, 0, 1, &[]).expect("trigger");
    event.read_exact(&mut count).expect("signal");
    assert_eq!(u64::from_ne_bytes(count), 1);
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let mut client = Client::new(words[1].as_ref()).expect("connect");
    let memory = File::options().read(true).write(true).open(&words[2]).expect("memory");
    let size = memory.metadata().expect("size").len();
    let (mut id, mut line) = ([0u8; 4], [0u8]);

    client.region_read(CONFIG, 0, &mut id).expect("read");
    client.region_write(CONFIG, LINE, &[0x42]).expect("write");
    client.region_read(CONFIG, LINE, &mut line).expect("read");
    assert_eq!(line[0], 0x42);
    assert!(client.region(CONFIG).expect("config").size >= 256);
    client.dma_map(0, 0x100000, size, memory.as_raw_fd()).expect("map");
    for index in 0..5 {
        if client.get_irq_info(index).expect("irq").count > 0 {
            fires(&mut client, index);
        }
    }
    client.dma_unmap(0x100000, size).expect("unmap");
    client.reset().expect("reset");
    println!("{:02x}{:02x}:{:02x}{:02x}", id[1], id[0], id[3], id[2]);
}
