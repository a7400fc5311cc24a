// Creates a container in an Azurite server, which checks signatures: node -e THIS PORT ACCOUNT KEY CONTAINER
const [port, account, key, container] = process.argv.slice(1);
const headers = { "x-ms-date": new Date().toUTCString(), "x-ms-version": "2021-08-06" };
const signed = ["PUT", ...Array(11).fill("")]
  .concat(Object.entries(headers).map(([name, value]) => `${name}:${value}`))
  .concat(`/${account}/${account}/${container}`, "restype:container")
  .join("\n");
const signature = require("crypto").createHmac("sha256", Buffer.from(key, "base64")).update(signed).digest("base64");
headers.Authorization = `SharedKey ${account}:${signature}`;
headers["Content-Length"] = 0;
const path = `/${account}/${container}?restype=container`;
require("http")
  .request({ host: "127.0.0.1", port, method: "PUT", path, headers }, (answer) => {
    answer.pipe(process.stderr);
    process.exitCode = answer.statusCode === 201 ? 0 : 1;
  })
  .end();
