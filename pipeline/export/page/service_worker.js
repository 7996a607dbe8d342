// Keeps the page's files, so that it opens without a network. Both names are filled in by the export.
"use strict";

const FILES = ["FILES"];
const NAME = `${self.registration.scope} ${"VERSION"}`;

self.addEventListener("install", (event) => event.waitUntil((async () => {
  const cache = await caches.open(NAME);
  // each is asked for again: what the browser holds may be an earlier page's
  await cache.addAll(FILES.map((file) => new Request(file, { cache: "no-cache" })));
  await self.skipWaiting();
})()));

self.addEventListener("activate", (event) => event.waitUntil((async () => {
  for (const name of await caches.keys()) {
    if (name !== NAME && name.startsWith(`${self.registration.scope} `)) await caches.delete(name);
  }
  await self.clients.claim();
})()));

self.addEventListener("fetch", (event) => event.respondWith((async () => {
  const cache = await caches.open(NAME);
  return (await cache.match(event.request, { ignoreSearch: true })) || fetch(event.request);
})()));
