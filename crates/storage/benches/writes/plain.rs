//! Plain SQLite, in a process of its own that is told when to write.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use dormouse_runtime::Env;
use rusqlite::{Connection, params};

/// The argument that makes this program the plain side.
pub const MODE: &str = "--plain-sqlite";

/// Threads that write at the same time, each to files of its own.
pub const THREADS: usize = 16;

const VALUE: [u8; super::VALUE_BYTES] = [b'v'; super::VALUE_BYTES];

/// The process, as who tells it when to write sees it.
pub struct Plain {
    child: Child,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Plain {
    /// Starts it over so many files, all open.
    pub fn start(folder: &Path, files: usize) -> Self {
        let program = std::env::current_exe().expect("this program");
        let mut child = Command::new(program)
            .args([MODE.as_ref(), folder.as_os_str(), files.to_string().as_ref()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this program runs once more");
        let orders = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let mut plain = Self { child, orders, answers };
        plain.answer();
        plain
    }

    /// Lets it write for so long. Returns the writes per second.
    pub fn turn(&mut self, turn: Duration) -> f64 {
        writeln!(self.orders, "{}", turn.as_millis()).expect("it listens");
        self.answer().parse().expect("a number")
    }

    fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim_end().to_owned()
    }
}

impl Drop for Plain {
    fn drop(&mut self) {
        // What it has written is thrown away anyhow.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Writes whenever it is told to, until nobody is there to tell it.
pub fn serve(folder: &Path, files: usize) {
    std::fs::create_dir_all(folder).expect("a folder");
    let mut files: Vec<_> =
        (0..files).map(|number| open(&folder.join(format!("{number}.sqlite3")))).collect();
    println!("ready");
    for order in std::io::stdin().lines() {
        let turn = order.expect("an order").parse().expect("milliseconds");
        println!("{}", write(&mut files, Duration::from_millis(turn)));
    }
}

/// Opens a new file and writes to it once, so that nothing is left to be made.
fn open(path: &Path) -> Connection {
    let open = || {
        let connection = Connection::open(path)?;
        connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        connection.pragma_update(None, "synchronous", "OFF")?;
        connection.execute_batch("CREATE TABLE messages(seq INTEGER PRIMARY KEY, value BLOB)")?;
        insert(&connection)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        Ok::<_, rusqlite::Error>(connection)
    };
    open().expect("a fresh file")
}

fn insert(connection: &Connection) -> rusqlite::Result<usize> {
    connection.prepare_cached("INSERT INTO messages(value) VALUES (?1)")?.execute(params![VALUE])
}

fn write(files: &mut [Connection], turn: Duration) -> f64 {
    let env = Env::system();
    let begun = env.boot();
    let share = files.len().div_ceil(THREADS);
    let written: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = files
            .chunks_mut(share)
            .map(|files| {
                let env = env.clone();
                scope.spawn(move || {
                    let mut written = 0;
                    for file in (0..files.len()).cycle() {
                        if env.boot() - begun >= turn {
                            break;
                        }
                        insert(&files[file]).expect("room on the disk");
                        written += 1;
                    }
                    written
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("it wrote")).sum()
    });
    written as f64 / (env.boot() - begun).as_secs_f64()
}
